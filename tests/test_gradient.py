"""The sampled gradient is unbiased: its mean over many rollouts is the exact gradient.

The measure is the mean square of (sampled mean − exact) / standard error over all parameters of
the heads. It is one in expectation where the estimator is right; the usual mistakes, made on
purpose at the end, give several times that.
"""

import dataclasses
import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ape_jax.algorithms import pg, pg_loss
from ape_jax.algorithms.task import make_task
from ape_jax.config import PGConfig, PGHypers
from ape_jax.core import objective, tabular
from ape_jax.envs import GridWorld
from ape_jax.evaluation import returns
from ape_jax.networks import observer_policy

NUM_BATCHES = 2000
GRID = GridWorld(size=3, goal=(0, 1), horizon=8)


@functools.cache
def task_for(critic="separate", observer="uniform", observer_reward=None):
    config = PGConfig(envs_per_expert=16, critic=critic, observer=observer)
    return make_task(config, GRID, observer_reward=observer_reward)


def random_params(task):
    """Heads far from uniform, and baselines that are wrong: neither may bias the gradient."""
    params = task.networks.init(jax.random.key(0))
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [x + jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(treedef, noisy)


def loss_of_heads(params, task, *collected):
    total, _ = pg_loss.loss(params, task.networks, *collected)
    return total


@partial(jax.jit, static_argnums=(0, 3))
def sampled_gradients(task, params, hypers, losses=(loss_of_heads,)):
    """Gradients of the heads under every loss, [batches, E, S, A] each, from the same rollouts."""

    def one(key):
        log_weights = pg.expert_log_weights(task, params)
        keys = tuple(jax.random.split(key))
        episodes = pg.collect(task, params, log_weights, hypers, keys)
        all_grads = [jax.grad(f)(params, task, log_weights, *episodes, hypers) for f in losses]
        return [grads.heads["params"]["table"] for grads in all_grads]

    return jax.lax.map(one, jax.random.split(jax.random.key(2), NUM_BATCHES), batch_size=100)


def mean_square_deviation(sampled, exact):
    """Mean over parameters, in squared standard errors."""
    sampled, exact = np.asarray(sampled, np.float64), np.asarray(exact, np.float64)
    error = sampled.std(axis=0, ddof=1) / np.sqrt(len(sampled))
    reached = error > 0
    assert reached.sum() >= 0.8 * reached.size  # All but the goal's rows.
    np.testing.assert_allclose(sampled.mean(axis=0)[~reached], exact[~reached], atol=1e-6)
    return np.mean(((sampled.mean(axis=0) - exact)[reached] / error[reached]) ** 2)


def exact_gradient(task, params, hypers, observer_reward=None):
    """Gradient of the loss, which is minus that of the objective."""
    return -jax.grad(tabular.exact_objective)(
        params.heads["params"]["table"],
        task.world.mdp,
        hypers.beta,
        weights=task.config.observer,
        temperature=hypers.temperature,
        observer_reward=observer_reward,
    )


# Three standard deviations of a mean of eighty squared normal deviates, which are correlated
# between the actions of a state.
TOLERANCE = 1.0 + 3.0 * np.sqrt(2.0 / 80) * 1.3


@pytest.mark.slow
def test_mean_sampled_gradient_equals_the_exact_gradient_of_the_posterior():
    """With a critic that both terms share; uniform weights and critics apart follow below."""
    task = task_for("shared", "posterior")
    params = random_params(task)
    for beta, temperature in ((0.0, 1.0), (1.0, 0.4)):
        hypers = PGHypers(beta=beta, temperature=temperature)
        (sampled,) = sampled_gradients(task, params, hypers)
        deviation = mean_square_deviation(sampled, exact_gradient(task, params, hypers))
        assert deviation < TOLERANCE, (beta, temperature)


@pytest.mark.slow
def test_mean_sampled_gradient_equals_the_exact_gradient_of_a_second_reward():
    """r̃ depends on the state, the action and the next state."""
    of_pair = jax.random.normal(jax.random.key(8), (9, 5))
    of_successor = jax.random.normal(jax.random.key(9), (9,))

    def second_reward(step):
        return of_pair[step.observation, step.action] + of_successor[step.next_observation]

    task, hypers = task_for(observer_reward=second_reward), PGHypers(beta=1.0)
    params = random_params(task)
    expected = of_pair + task.world.mdp.transition @ of_successor
    (sampled,) = sampled_gradients(task, params, hypers)
    exact = exact_gradient(task, params, hypers, expected)
    assert mean_square_deviation(sampled, exact) < TOLERANCE
    of_one_reward = exact_gradient(task, params, hypers)
    assert mean_square_deviation(sampled, of_one_reward) > 2 * TOLERANCE


MULTIPLIERS = jnp.array([4.0, 0.5])


def constrained(params, task, *collected):
    return pg_loss.loss(params, task.networks, *collected, MULTIPLIERS)[0]


def by_steps(params, task, log_weights, experts, observer, hypers):
    """Mistake: each term is a mean over steps instead of trajectories."""
    _, (expert, clone) = pg_loss.loss(params, task.networks, log_weights, experts, observer, hypers)
    lengths = [jnp.mean(jnp.sum(episodes.mask, axis=0)) for episodes in (experts, observer)]
    return expert.policy + clone.policy * lengths[0] / lengths[1]


def forgetting_heads(params, task, log_weights, experts, observer, hypers):
    """Mistake: the mixture's gradient flows through the first head only."""
    first = (jnp.arange(2) == 0)[:, None, None]
    kept = jax.tree.map(lambda x: jnp.where(first, x, jax.lax.stop_gradient(x)), params.heads)
    forgetful = params._replace(heads=kept)
    batches = (task.networks, log_weights, experts, observer, hypers)
    _, (expert, _) = pg_loss.loss(params, *batches)
    _, (_, clone) = pg_loss.loss(forgetful, *batches)
    return expert.policy + clone.policy


def leaking_resets(params, task, log_weights, experts, observer, hypers):
    """Mistake: returns include rewards after the end, as after an unnoticed autoreset."""
    experts, observer = (
        episodes._replace(reward=jnp.full_like(episodes.reward, -1.0))
        for episodes in (experts, observer)
    )
    return loss_of_heads(params, task, log_weights, experts, observer, hypers)


def params_with_a_lasting_observer(task):
    """Experts that reach the goal sooner than their mixture, by a little exact ascent."""
    logits = jax.random.normal(jax.random.key(0), (2, 9, 5))
    optimizer = optax.adam(0.05)

    def ascend(carry, _):
        logits, opt_state = carry
        gradient = jax.grad(lambda x: -tabular.exact_objective(x, task.world.mdp, 0.8))(logits)
        changes, opt_state = optimizer.update(gradient, opt_state)
        return (optax.apply_updates(logits, changes), opt_state), None

    (logits, _), _ = jax.lax.scan(ascend, (logits, optimizer.init(logits)), length=100)
    params = random_params(task)
    return params._replace(heads={"params": {"table": logits}})


LOSSES = (loss_of_heads, constrained, by_steps, forgetting_heads, leaking_resets)


@pytest.fixture(scope="module")
def deviation():
    """Deviation of a loss's mean gradient from an exact one; all losses share their rollouts."""
    task, hypers = task_for(), PGHypers(beta=1.0)
    params = params_with_a_lasting_observer(task)
    sampled = dict(zip(LOSSES, sampled_gradients(task, params, hypers, LOSSES), strict=True))
    penalised = exact_gradient(task, params, hypers)

    def dual_loss(logits):
        policies = jax.nn.softmax(logits)
        experts = jax.vmap(tabular.policy_return, (None, 0))(task.world.mdp, policies)
        clone = tabular.policy_return(task.world.mdp, jnp.mean(policies, axis=0))
        return -objective.dual_objective(experts, clone, MULTIPLIERS)

    dual = jax.grad(dual_loss)(params.heads["params"]["table"])

    def measure(loss):
        return mean_square_deviation(sampled[loss], dual if loss is constrained else penalised)

    return measure


@pytest.mark.slow
@pytest.mark.parametrize("loss", [loss_of_heads, constrained])
def test_mean_sampled_gradient_equals_the_exact_gradient(loss, deviation):
    """Penalised form and constrained form, with uniform weights and one critic for each term."""
    assert deviation(loss) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("mistake", [by_steps, forgetting_heads, leaking_resets])
def test_comparison_with_the_exact_gradient_exposes_the_usual_mistakes(mistake, deviation):
    assert deviation(mistake) > 2 * TOLERANCE


def test_one_head_without_observer_is_plain_policy_gradient():
    """One head, β = 0: the gradient is REINFORCE with a baseline, written out in NumPy."""
    config = PGConfig(num_experts=1, envs_per_expert=16)
    task = make_task(config, GRID)
    params, hypers = random_params(task), PGHypers(beta=0.0, gamma=0.9)
    params = params._replace(observer_critic=jax.tree.map(jnp.zeros_like, params.observer_critic))
    log_weights = pg.expert_log_weights(task, params)

    @jax.jit
    def gradient(params):
        keys = tuple(jax.random.split(jax.random.key(5)))
        experts, observer = pg.collect(task, params, log_weights, hypers, keys)
        return jax.grad(loss_of_heads)(
            params, task, log_weights, experts, observer, hypers
        ), experts

    grads, experts = gradient(params)
    logits = np.asarray(params.heads["params"]["table"][0], np.float64)
    values = np.asarray(params.expert_critics["params"]["table"][0, :, 0], np.float64)
    policy = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    expected = np.zeros_like(logits)
    for b in range(16):
        length = int(np.asarray(experts.mask[:, 0, b]).sum())
        for t in range(length):
            state, action = int(experts.observation[t, 0, b]), int(experts.action[t, 0, b])
            score = np.eye(5)[action] - policy[state]
            return_ = -sum(0.9**k for k in range(length - t))
            expected[state] -= score * (return_ - values[state]) / 16
    np.testing.assert_allclose(grads.heads["params"]["table"][0], expected, rtol=1e-3, atol=1e-4)


def test_temperature_one_is_the_plain_mixture():
    task = task_for()
    params = random_params(task)
    log_weights = pg.expert_log_weights(task, params)
    observer = observer_policy(task.networks, params.heads, log_weights, 1.0)
    plain = jnp.mean(jnp.exp(task.networks.tabulate_experts(params.heads)), axis=0)
    np.testing.assert_allclose(returns.policy_table(observer, 9), plain, rtol=1e-5)


def test_posterior_weights_of_the_learner_are_those_of_the_occupancies():
    task = task_for(observer="posterior")
    params = random_params(task)
    policies = jnp.exp(task.networks.tabulate_experts(params.heads))
    occupancies = jax.vmap(tabular.state_occupancy, (None, 0))(task.world.mdp, policies)
    ours = jnp.exp(jax.vmap(pg.expert_log_weights(task, params))(jnp.arange(9)))
    inner = np.asarray(~task.world.mdp.terminal)
    expected = np.asarray(occupancies / jnp.sum(occupancies, axis=0, keepdims=True)).T
    np.testing.assert_allclose(ours[inner], expected[inner], rtol=1e-4)


def test_task_is_hashed_by_identity_and_can_be_a_static_argument():
    task = task_for()
    assert hash(task) == hash(task)
    assert task != dataclasses.replace(task)
