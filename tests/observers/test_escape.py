"""A trap that holds a greedy clone, on a grid of four cells with the goal in cell 0.

Cell 1 leads down to cell 3, and cell 3 up to cell 1, each with probability 0.6.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from hand_made import Coordinates, Known, steps, table

from ape_jax.core.policies import MemorylessPolicy, greedy
from ape_jax.envs import GridWorld
from ape_jax.envs.world import World
from ape_jax.evaluation.returns import sampled_returns
from ape_jax.observers import Escape, TabularCloning
from ape_jax.observers.escape import MAX_FEATURES

UP, DOWN, LEFT, RIGHT, STAY = range(5)
HORIZON, EPISODES = 50, 2048
TRAP = np.zeros((4, 5))
TRAP[1, [DOWN, LEFT]] = 0.6, 0.4
TRAP[3, [UP, LEFT]] = 0.6, 0.4
TRAP[2, [UP, RIGHT]] = 0.9, 0.1
TRAP[0, STAY] = 1.0

PATH = [3, 1, 3, 2, 1]
AGAIN = [False, False, True, False, True]


def grid(kind=GridWorld):
    env = kind(size=2, goal=(0, 0), horizon=HORIZON)
    return World(env, env.default_params, HORIZON, env.finite_mdp())


@struct.dataclass
class AtCoordinates(MemorylessPolicy):
    """The policy of the trap, of coordinates or of what begins with them."""

    def distribution(self, observation):
        cell = (2 * observation[0] + observation[1]).astype(int)
        return jax.tree.map(lambda rows: rows[cell], table(TRAP).table)


def coordinates(cells):
    return np.stack(np.divmod(cells, 2), axis=-1).astype(np.float32)


SHOWN = steps(np.arange(4), np.zeros(4, int), [4])
FINITE = Escape(Known(table(TRAP)), 4).fit(jax.random.key(0), SHOWN)
VECTORS = SHOWN._replace(observation=jnp.asarray(coordinates(np.arange(4))))
NEAR = Escape(Known(AtCoordinates()), None).fit(jax.random.key(0), VECTORS)

RETURNS = jax.jit(sampled_returns, static_argnums=(0, 3))


@pytest.fixture(scope="module")
def cells():
    return grid()


def along(policy, observations):
    """Probabilities of the actions at each observation of an episode."""
    carry, found = policy.initial_carry(), []
    for observation in observations:
        carry, acts = policy(carry, jnp.asarray(observation), jnp.int32(-1))
        found.append(np.exp(acts.log_probs))
    return np.stack(found)


def expected_along(cells, again):
    best = np.eye(5)[TRAP.argmax(axis=1)]
    return np.where(np.array(again)[:, None], TRAP[cells], best[cells])


def test_it_is_greedy_at_the_first_visit_and_samples_after():
    expected = expected_along(PATH, AGAIN)
    np.testing.assert_allclose(along(FINITE, PATH), expected, atol=1e-6)
    np.testing.assert_allclose(along(NEAR, coordinates(np.array(PATH))), expected, atol=1e-6)


def test_a_greedy_clone_stays_in_the_trap_and_escape_leaves_it(cells):
    """From cell 2 the goal is one step away. The trap costs as much as its Markov chain says."""
    held = np.asarray(RETURNS(cells, greedy(table(TRAP)), jax.random.key(0), EPISODES))
    assert set(held) == {-1.0, -float(HORIZON)}
    # Expected steps from cell 1, 3 when both were visited, and 2 has not been:
    # e1 = 1 + 0.6 e3, and e3 = 1 + 0.4 + 0.6 e1. The episode makes two greedy steps before.
    in_one, in_three = np.linalg.solve([[1.0, -0.6], [-0.6, 1.0]], [1.0, 1.4])
    exact = -np.mean([2.0 + in_one, 2.0 + in_three, 1.0])
    for world, clone in ((cells, FINITE), (grid(Coordinates), NEAR)):
        ours = np.asarray(RETURNS(world, clone, jax.random.key(0), EPISODES))
        assert abs(ours.mean() - exact) < 4 * ours.std() / np.sqrt(EPISODES)


def test_nothing_helps_where_the_sampled_action_stays_in_the_trap_too(cells):
    sure = table(np.eye(5)[TRAP.argmax(axis=1)])
    clone = Escape(Known(sure), 4).fit(jax.random.key(0), SHOWN)
    ours, held = (
        RETURNS(cells, policy, jax.random.key(1), EPISODES) for policy in (clone, greedy(sure))
    )
    np.testing.assert_array_equal(ours, held)
    assert np.min(held) == -HORIZON


def test_it_is_the_greedy_clone_where_nothing_recurs(cells):
    """A policy whose greedy actions go straight to the goal."""
    straight = np.full((4, 5), 0.1)
    straight[[0, 1, 2, 3], [STAY, LEFT, UP, LEFT]] = 0.6
    clone = Escape(Known(table(straight)), 4).fit(jax.random.key(0), SHOWN)
    ours, best = (
        RETURNS(cells, policy, jax.random.key(2), EPISODES)
        for policy in (clone, greedy(table(straight)))
    )
    np.testing.assert_array_equal(ours, best)
    assert set(np.asarray(best)) == {-1.0, -2.0}


def test_each_episode_starts_without_memories():
    first = along(FINITE, PATH)
    np.testing.assert_array_equal(first, along(FINITE, PATH))


def test_close_observations_recur_and_others_do_not():
    """Distances count in standard deviations: the pairs of cells are typically two apart."""
    path = coordinates(np.array([3, 3, 3]))
    path[1:, 0] += 0.3, 0.002
    found = along(NEAR, path)
    greedy_at_three, sampled = expected_along([3, 3], [False, True])
    np.testing.assert_allclose(found, [greedy_at_three, greedy_at_three, sampled], atol=1e-6)


def test_only_the_newest_observations_are_remembered():
    observer = Escape(Known(AtCoordinates()), None, memory=2)
    clone = observer.fit(jax.random.key(0), VECTORS)
    path = [3, 2, 1, 3, 1]
    again = [False, False, False, False, True]
    np.testing.assert_allclose(
        along(clone, coordinates(np.array(path))), expected_along(path, again), atol=1e-6
    )


def test_long_observations_are_told_apart_by_their_projections():
    more = np.random.default_rng(0).normal(size=(4, MAX_FEATURES + 4)).astype(np.float32)
    long = np.concatenate([coordinates(np.arange(4)), more], axis=1)
    shown = SHOWN._replace(observation=jnp.asarray(long))
    clone = Escape(Known(AtCoordinates()), None).fit(jax.random.key(3), shown)
    assert clone.projection.shape == (MAX_FEATURES + 6, MAX_FEATURES)
    np.testing.assert_allclose(along(clone, long[PATH]), expected_along(PATH, AGAIN), atol=1e-6)


def test_an_observation_that_never_changes_recurs():
    same = SHOWN._replace(observation=jnp.ones((4, 2)))
    clone = Escape(Known(AtCoordinates()), None).fit(jax.random.key(0), same)
    found = along(clone, np.ones((2, 2), np.float32))
    np.testing.assert_allclose(found, expected_along([3, 3], [False, True]), atol=1e-6)


def test_it_clones_by_the_observer_that_it_is_given():
    clone = Escape(TabularCloning(4, 5), 4).fit(
        jax.random.key(0), SHOWN._replace(action=SHOWN.observation)
    )
    np.testing.assert_allclose(along(clone, np.arange(4)), np.eye(5)[:4], atol=1e-6)


def test_seeds_side_by_side_are_those_one_by_one():
    keys = jax.random.split(jax.random.key(0), 2)
    shown = jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), VECTORS)
    observer = Escape(Known(AtCoordinates()), None)
    together = jax.vmap(observer.fit)(keys, shown)
    for seed in range(2):
        alone = observer.fit(keys[seed], jax.tree.map(lambda x, seed=seed: x[seed], shown))
        for ours, expected in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(ours[seed], expected, rtol=1e-5, atol=1e-7)
