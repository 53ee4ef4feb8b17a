import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand_made import show, steps
from probes import Probe

from ape_jax.algorithms.task import make_task
from ape_jax.config import PGConfig
from ape_jax.core import tabular
from ape_jax.envs import spaces
from ape_jax.evaluation.returns import policy_table
from ape_jax.observers import AdvantageWeighted, BehaviourCloning, TabularCloning
from ape_jax.observers.advantage_weighted import MAX_WEIGHT

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def observer(small_task):
    return AdvantageWeighted(TabularCloning(9, 5), small_task.networks)


@pytest.fixture(scope="module")
def weights_of(observer):
    compiled = jax.jit(observer.weights)
    return lambda shown: np.asarray(compiled(KEY, shown))


class Vectors(Probe):
    """Two observations as vectors, and two actions."""

    def __init__(self):
        super().__init__(lambda shown, action: 0.0, continuous=True)

    def action_space(self, params=None):
        return spaces.Discrete(2)


def bandit(rewards, actions):
    """One step an episode, all in state 0."""
    count = len(actions)
    return steps(np.zeros(count, int), actions, [1] * count, rewards, ends=range(count))


def test_weights_by_hand(observer, weights_of):
    """Returns 0 and 1 alike often: advantages ±½, σ = ½ and λ = ½, so weights e^±2."""
    actions = np.tile([0, 3], 50)
    shown = bandit(actions / 3.0, actions)
    np.testing.assert_allclose(weights_of(shown), np.tile(np.exp([-2.0, 2.0]), 50), rtol=1e-4)
    odds = policy_table(jax.jit(observer.fit)(KEY, shown), 9)[0]
    expected = [1 / (1 + np.exp(4.0)), 0, 0, 1 / (1 + np.exp(-4.0)), 0]
    np.testing.assert_allclose(odds, expected, rtol=1e-3, atol=1e-6)


def test_a_higher_temperature_is_closer_to_plain_cloning(observer):
    actions = np.tile([0, 3], 50)
    shown = bandit(actions / 3.0, actions)
    warm = dataclasses.replace(observer, temperature=1e4)
    np.testing.assert_allclose(jax.jit(warm.weights)(KEY, shown), 1.0, rtol=1e-3)


def test_weights_have_a_limit(weights_of):
    rewards = np.append(np.zeros(99), 1.0)
    weights = weights_of(bandit(rewards, np.zeros(100, int)))
    assert float(weights[-1]) == MAX_WEIGHT
    assert np.all(weights[:-1] < 1.0)


def test_an_advantage_is_over_the_mean_of_its_own_state(weights_of):
    """State 1 pays ten more whatever is done: its steps weigh as much as those of state 0."""
    actions = np.tile([0, 3], 50)
    shown = bandit(actions / 3.0, actions)
    states = np.repeat([0, 1], 50)
    shown = shown._replace(
        observation=jnp.asarray(states), reward=shown.reward + 10.0 * states.astype(np.float32)
    )
    weights = weights_of(shown)
    np.testing.assert_allclose(weights[:50], weights[50:], rtol=1e-3)


def test_returns_that_follow_count_and_not_rewards(weights_of):
    """The step that pays nothing itself leads to the reward."""
    shown = steps(
        observation=np.tile([0, 1], 50),
        action=np.tile([2, 0, 1, 0], 25),
        lengths=[2] * 50,
        reward=np.tile([0.0, 1.0, 0.0, 0.0], 25),
        ends=range(50),
    )
    good, bad = weights_of(shown)[[0, 2]]
    assert good > 10 * bad


def test_episodes_without_an_end_do_not_count_unless_all_are(weights_of):
    actions = np.tile([0, 3], 50)
    shown = bandit(actions / 3.0, actions)
    marked = shown._replace(terminated=jnp.arange(100) < 60)
    weights = weights_of(marked)
    assert np.all(weights[:60] > 0)
    assert not np.any(weights[60:])
    none = shown._replace(terminated=jnp.zeros(100, bool))
    assert np.all(weights_of(none) > 0)


def test_equal_returns_make_it_plain_cloning(small_task, small_mdp, weights_of):
    """Optimal experts who break ties at random: what follows depends on the state alone."""
    shown = show(small_task.world, tabular.optimal_policy(small_mdp), 4_000)
    weights = weights_of(shown)
    assert set(np.round(weights, 1)) == {0.0, 1.0}  # Zero where an episode was cut.
    assert np.mean(weights) > 0.95


def test_better_actions_are_preferred_where_observations_are_vectors():
    """The critic learns that the two observations pay differently, and the better action wins."""
    task = make_task(PGConfig(head="mlp", hidden_sizes=(16,)), Vectors())
    generator = np.random.default_rng(0)
    states, actions = generator.integers(0, 2, (2, 1000))
    shown = steps(
        observation=2.0 * states[:, None].astype(np.float32) - 1.0,
        action=actions,
        lengths=[1] * 1000,
        reward=5.0 * states + (actions == states),
        ends=range(1000),
    )
    cloning = BehaviourCloning(task.networks, num_updates=400, batch_size=256)
    observer = AdvantageWeighted(cloning, task.networks, num_updates=400, batch_size=256)
    clone = jax.jit(observer.fit)(KEY, shown)
    for state in (0, 1):
        _, acts = clone((), jnp.array([2.0 * state - 1.0]), jnp.int32(-1))
        assert float(acts.log_probs[state]) > np.log(0.9)


def test_seeds_side_by_side_are_those_one_by_one(observer, small_task, random_policies):
    shown = [show(small_task.world, policy, 4_000) for policy in random_policies[:2]]
    keys = jax.random.split(KEY, 2)
    fit = jax.jit(observer.fit)
    together = jax.jit(jax.vmap(fit))(keys, jax.tree.map(lambda *x: jnp.stack(x), *shown))
    for seed in range(2):
        alone = fit(keys[seed], shown[seed])
        np.testing.assert_allclose(
            jnp.exp(together.table.log_probs[seed]), jnp.exp(alone.table.log_probs), rtol=1e-4
        )
