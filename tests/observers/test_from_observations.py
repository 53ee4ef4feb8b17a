import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from gymnax.environments import environment, spaces
from hand_made import Coordinates, Recorder, show

from ape_jax.algorithms.task import make_task
from ape_jax.config import PGConfig, PPOConfig
from ape_jax.core import tabular
from ape_jax.core.distributions import Categorical, Gaussian
from ape_jax.demonstrations import collect
from ape_jax.evaluation.returns import policy_table
from ape_jax.observers import FromObservations, TabularCloning

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def shown(small_task, small_mdp):
    """Optimal experts: from one cell to another there is one action."""
    return show(small_task.world, tabular.optimal_policy(small_mdp), 4_000)


@pytest.fixture(scope="module")
def infer(small_task):
    """The demonstrations as the observer gets them, by counts."""
    observer = FromObservations(small_task.world, small_task.networks, Recorder(), 4_000)
    return jax.jit(lambda key, shown: observer.fit(key, shown).demonstrations)


def told(shown):
    """The steps of which it is known what followed."""
    last = np.append(np.diff(shown.episode) != 0, True)
    return ~last | np.asarray(shown.terminated)


def test_actions_of_a_deterministic_world_are_recovered(shown, infer):
    inferred = infer(KEY, shown)
    known = told(shown)
    np.testing.assert_array_equal(inferred.action[known], shown.action[known])
    for name in ("observation", "terminated", "truncated", "episode"):
        np.testing.assert_array_equal(getattr(inferred, name), getattr(shown, name))


def test_actions_that_do_the_same_are_drawn_alike(small_task, infer):
    """To stay in a corner, to walk into a wall there: three actions that look the same."""
    stays = show(small_task.world, np.eye(5)[np.full(9, 4)], 4_000)
    actions = np.asarray(infer(KEY, stays).action)
    corner = (np.asarray(stays.observation) == 8) & told(stays)
    shares = np.bincount(actions[corner], minlength=5) / corner.sum()
    np.testing.assert_allclose(shares, [0, 1 / 3, 0, 1 / 3, 1 / 3], atol=0.15)


def test_neither_actions_nor_rewards_are_looked_at(shown, infer):
    other = shown._replace(
        action=jax.random.permutation(KEY, shown.action), reward=jnp.arange(4_000.0)
    )
    ours, expected = infer(KEY, other), infer(KEY, shown)
    np.testing.assert_array_equal(ours.action, expected.action)
    assert not np.any(ours.reward)
    assert not np.any(expected.reward)


def test_the_clone_is_as_good_as_that_of_the_actions(small_task, small_mdp, shown):
    observer = FromObservations(small_task.world, small_task.networks, TabularCloning(9, 5), 4_000)
    ours = policy_table(jax.jit(observer.fit)(KEY, shown), 9)
    best = tabular.policy_return(small_mdp, tabular.optimal_policy(small_mdp))
    assert float(tabular.policy_return(small_mdp, ours)) == pytest.approx(float(best), abs=0.05)


def test_actions_are_recovered_where_observations_are_vectors(small_mdp):
    """The same grid as coordinates; what leads to one cell from another is to be generalised."""
    env = Coordinates(size=3, goal=(0, 1), horizon=8)
    task = make_task(PGConfig(head="mlp", hidden_sizes=(8,)), env)
    best = jnp.log(jnp.maximum(tabular.optimal_policy(small_mdp), 1e-30))

    def act(observation, _):
        return Categorical(best[(3 * observation[0] + observation[1]).astype(int)])

    observer = FromObservations(task.world, task.networks, Recorder(), 4_000, 400)

    @jax.jit
    def run(key):
        shown = collect.pool(key, task.world, act, 1, 2_000)[0]
        return shown, observer.fit(key, shown).demonstrations

    shown, inferred = run(KEY)
    known = told(shown)
    assert np.mean((inferred.action == shown.action)[known]) > 0.95


def test_continuous_actions_are_recovered():
    """A place that moves by the action: the model has to find the difference."""
    task = make_task(PPOConfig(head="gaussian", hidden_sizes=(8,)), Drift())
    observer = FromObservations(task.world, task.networks, Recorder(), 4_000, 800)

    def act(observation, _):
        return Gaussian(-0.5 * observation, jnp.full(2, -1.0))

    @jax.jit
    def run(key):
        shown = collect.pool(key, task.world, act, 1, 2_000)[0]
        return shown, observer.fit(key, shown).demonstrations

    shown, inferred = run(KEY)
    known = told(shown)
    errors = np.asarray(inferred.action - shown.action)[known]
    assert np.sqrt(np.mean(errors**2)) < 0.2 * np.std(shown.action)
    assert np.all(np.abs(inferred.action) <= 1.0)


@struct.dataclass
class Place(environment.EnvState):
    time: jax.Array
    place: jax.Array


class Drift(environment.Environment):
    """A point in the plane that each action moves by itself; the task never ends."""

    @property
    def default_params(self):
        return environment.EnvParams(max_steps_in_episode=10)

    def reset_env(self, key, params):
        state = Place(time=jnp.int32(0), place=jax.random.normal(key, (2,)))
        return state.place, state

    def step_env(self, key, state, action, params):
        state = Place(time=state.time + 1, place=state.place + action)
        return state.place, state, jnp.float32(0.0), jnp.bool_(False), {}

    def is_terminated(self, state, params):
        return jnp.bool_(False)

    def action_space(self, params=None):
        return spaces.Box(-1.0, 1.0, (2,))

    def observation_space(self, params=None):
        return spaces.Box(-10.0, 10.0, (2,))

    @property
    def name(self):
        return "Drift"


def test_seeds_side_by_side_are_those_one_by_one(small_task, random_policies, infer):
    shown = [show(small_task.world, policy, 4_000) for policy in random_policies[:2]]
    keys = jax.random.split(KEY, 2)
    together = jax.jit(jax.vmap(infer))(keys, jax.tree.map(lambda *x: jnp.stack(x), *shown))
    for seed in range(2):
        alone = infer(keys[seed], shown[seed])
        # A number in a million may fall on the other side of a threshold.
        assert np.mean(together.action[seed] == alone.action) > 0.999
