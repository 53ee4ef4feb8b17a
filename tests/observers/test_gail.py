import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vectors

from ape_jax.algorithms.task import make_task
from ape_jax.config import PPOConfig
from ape_jax.core import tabular
from ape_jax.demonstrations import collect
from ape_jax.envs import GridWorld
from ape_jax.evaluation.returns import policy_table
from ape_jax.observers.gail import Gail, share_before_end, step_rewards
from ape_jax.types import Transition

CELLS = len(vectors.CELLS)


def occupancy(probs):
    """Expected visits of each cell and action in an episode, as shares of the time limit."""
    visits = tabular.state_occupancy(vectors.MDP, probs)
    return visits[:, None] * probs / vectors.MDP.horizon


def error(probs, experts):
    """Total variation between the occupancies, where the time after the end counts too."""
    theirs = jnp.mean(jnp.stack([occupancy(expert) for expert in experts]), axis=0)
    ours = occupancy(probs)
    of_ends = jnp.abs(jnp.sum(ours) - jnp.sum(theirs))
    return float(0.5 * (jnp.sum(jnp.abs(ours - theirs)) + of_ends))


def learn(experts, num_updates):
    shown = vectors.states(experts, 8_000)
    policy = vectors.fit(Gail(vectors.TASK, num_updates=num_updates), shown)
    return policy_table(policy, CELLS)


@pytest.mark.parametrize("kind", ["good", "bad"])
def test_occupancy_comes_close_to_the_experts(kind):
    """So the return does too: it is no better than bad experts are."""
    detour = jnp.zeros((CELLS, 5)).at[:, 4].set(1.0)
    experts = {
        "good": [0.9 * vectors.OPTIMAL + 0.1 * vectors.UNIFORM, vectors.OPTIMAL],
        "bad": [0.4 * vectors.OPTIMAL + 0.6 * detour, 0.3 * vectors.OPTIMAL + 0.7 * detour],
    }[kind]
    first, last = learn(experts, 2), learn(experts, 150)
    assert error(last, experts) < 0.35 * error(first, experts)
    theirs = np.mean([vectors.exact_return(expert) for expert in experts])
    assert vectors.exact_return(first) < theirs - 3
    assert vectors.exact_return(last) == pytest.approx(theirs, abs=1.5)


def test_rewards_of_steps_by_hand():
    """Experts end after half of the limit, the learner after three quarters of it."""
    flags = jnp.array([[False], [True]])
    zeros = jnp.zeros((2, 1))
    steps = Transition(zeros, zeros, zeros, flags, ~flags, ~flags, zeros)
    logits = jnp.array([[0.25], [99.0]])
    ours = step_rewards(logits, steps, jnp.float32(0.5), jnp.float32(0.75), 0.5, 2)
    ratio, after = np.log(0.5 / 0.75), np.log(0.5 / 0.25)
    expected = [[0.25 + ratio], [5.0 + ratio + (0.5 + 0.25) * after]]
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_share_before_the_end():
    assert float(share_before_end(jnp.float32(0.1), 40)) == pytest.approx(0.25)
    assert float(share_before_end(jnp.float32(0.0), 40)) == pytest.approx(0.99)


def test_rewards_of_the_environment_are_not_seen():
    shown = vectors.states([vectors.OPTIMAL], 200)
    blind = GridWorld(size=vectors.SIZE, horizon=30)
    step_env = blind.step_env

    def without_rewards(*arguments):
        observation, state, _, *others = step_env(*arguments)
        return observation, state, jnp.float32(7.0), *others

    blind.step_env = without_rewards
    tasks = [dataclasses.replace(vectors.TASK), make_task(vectors.TASK.config, blind)]
    # A world that is moved as tables would not ask the environment.
    tasks = [
        dataclasses.replace(task, world=dataclasses.replace(task.world, mdp=None)) for task in tasks
    ]
    tables = [policy_table(vectors.fit(Gail(task, num_updates=3), shown), CELLS) for task in tasks]
    np.testing.assert_array_equal(*tables)


@pytest.mark.parametrize(
    ("env", "head"), [("Pendulum-v1", "gaussian"), ("Asterix-MinAtar", "conv")]
)
def test_vectors_images_and_continuous_actions_are_accepted(env, head):
    task = make_task(PPOConfig(env=env, head=head, observer="none", num_experts=1))
    heads = task.networks.init(jax.random.key(0)).heads
    shown, _ = collect.collect(jax.random.key(1), task, heads, 200)
    policy = vectors.fit(Gail(task, num_updates=2), shown)
    log_probs = jax.vmap(lambda x, a: policy.distribution(x).log_prob(a))(
        shown.observation, shown.action
    )
    assert bool(jnp.all(jnp.isfinite(log_probs)))


def test_a_single_step_gives_a_defined_policy():
    shown = jax.tree.map(lambda x: x[:1], vectors.states([vectors.OPTIMAL], 8))
    policy = vectors.fit(Gail(vectors.TASK, num_updates=2), shown)
    np.testing.assert_allclose(jnp.sum(policy_table(policy, CELLS), axis=-1), 1.0, rtol=1e-4)
