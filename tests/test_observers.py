import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ape_jax.algorithms.task import make_task
from ape_jax.config import PGConfig
from ape_jax.core import tabular
from ape_jax.demonstrations import collect
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.evaluation import returns
from ape_jax.observers import BehaviourCloning, Mixture, TabularCloning

NUM_STEPS = 200_000
COLLECT = jax.jit(collect.collect, static_argnums=(1, 3))
EXPECTED_RETURN = jax.jit(returns.expected_return, static_argnums=0)
ENSEMBLE_RETURNS = jax.jit(returns.ensemble_returns, static_argnums=0)


@pytest.fixture(scope="module")
def heads(small_task):
    """Two experts that differ, and that reach the limit now and then."""
    return jax.tree.map(lambda x: 1.5 * x, small_task.networks.init(jax.random.key(2)).heads)


@pytest.fixture(scope="module")
def policies(small_task, heads):
    return jnp.exp(small_task.networks.tabulate_experts(heads))


@pytest.fixture(scope="module")
def collected(small_task, heads):
    return COLLECT(jax.random.key(0), small_task, heads, NUM_STEPS)


@pytest.fixture(scope="module")
def shown(collected):
    return collected[0]


@pytest.fixture(scope="module")
def hidden(collected):
    return np.asarray(collected[1])


def posterior_clone(mdp, policies):
    weights = jnp.exp(tabular.observer_weights(mdp, policies, "posterior"))
    return jnp.einsum("se,esa->sa", weights, policies)


def test_demonstrations_have_exactly_the_steps_asked_for(small_task, heads, shown):
    assert {x.shape for x in shown} == {(NUM_STEPS,)}
    few, hidden = COLLECT(jax.random.key(0), small_task, heads, 7)
    assert {x.shape for x in (*few, hidden)} == {(7,)}


def test_demonstrations_keep_one_expert_an_episode_and_number_episodes_in_order(shown, hidden):
    episode, expert = np.asarray(shown.episode), hidden
    ends = np.asarray(shown.terminated | shown.truncated)
    assert episode[0] == 0
    assert set(np.diff(episode)) <= {0, 1}
    assert np.all(np.diff(episode)[ends[:-1]] == 1)
    same = np.diff(episode) == 0
    assert np.all(expert[1:][same] == expert[:-1][same])


def test_demonstrations_draw_experts_evenly_by_episode_not_by_step(
    shown, hidden, policies, small_mdp
):
    """By episode each expert gets half; by step the slower one gets more, as occupancies say."""
    episode, expert = np.asarray(shown.episode), hidden
    first = np.concatenate([[True], np.diff(episode) == 1])
    num_episodes = first.sum()
    assert abs(expert[first].mean() - 0.5) < 4 * 0.5 / np.sqrt(num_episodes)
    lengths = [float(jnp.sum(tabular.state_occupancy(small_mdp, policy))) for policy in policies]
    assert abs(lengths[0] - lengths[1]) > 0.3
    assert expert.mean() == pytest.approx(lengths[1] / sum(lengths), abs=0.01)


def test_demonstrations_show_the_average_occupancy(shown, policies, small_mdp):
    occupancies = jax.vmap(tabular.state_occupancy, (None, 0))(small_mdp, policies)
    expected = np.asarray(jnp.sum(occupancies, axis=0) / jnp.sum(occupancies))
    ours = np.bincount(np.asarray(shown.observation), minlength=9) / NUM_STEPS
    np.testing.assert_allclose(ours, expected, atol=0.006)


def test_tabular_cloning_counts():
    shown = Demonstrations(
        observation=jnp.array([0, 0, 0, 2]),
        action=jnp.array([1, 1, 0, 2]),
        reward=jnp.zeros(4),
        terminated=jnp.zeros(4, bool),
        truncated=jnp.zeros(4, bool),
        episode=jnp.zeros(4, int),
    )
    clone = TabularCloning(3, 3).fit(jax.random.key(0), shown)
    expected = [[1 / 3, 2 / 3, 0], [1 / 3, 1 / 3, 1 / 3], [0, 0, 1]]
    np.testing.assert_allclose(returns.policy_table(clone, 3), expected, atol=1e-6)
    assert np.all(np.isfinite(clone.table.log_probs))


def test_tabular_cloning_converges_to_the_exact_posterior_observer(shown, policies, small_mdp):
    clone = TabularCloning(9, 5).fit(jax.random.key(0), shown)
    ours = returns.policy_table(clone, 9)
    alive = np.asarray(~small_mdp.terminal)
    counts = np.bincount(np.asarray(shown.observation), minlength=9)[alive]
    expected = np.asarray(posterior_clone(small_mdp, policies))[alive]
    # Five standard errors of a share; steps of one episode are correlated, hence twice that.
    error = np.sqrt(expected * (1 - expected) / counts[:, None])
    assert np.all(np.abs(np.asarray(ours)[alive] - expected) < 10 * error + 1e-4)


def test_network_cloning_agrees_with_counting(small_grid, shown, small_mdp):
    networks = make_task(PGConfig(head="mlp"), small_grid).networks
    observer = BehaviourCloning(networks, num_updates=400)
    clone = jax.jit(observer.fit)(jax.random.key(1), shown)
    counted = TabularCloning(9, 5).fit(jax.random.key(0), shown)
    ours, expected = (returns.policy_table(policy, 9) for policy in (clone, counted))
    alive = np.asarray(~small_mdp.terminal)
    np.testing.assert_allclose(np.asarray(ours)[alive], np.asarray(expected)[alive], atol=0.03)


def test_fitting_vmaps_over_seeds(small_task, heads):
    keys = jax.random.split(jax.random.key(0), 2)

    def attack(key):
        shown, _ = collect.collect(key, small_task, heads, 5_000)
        clone = TabularCloning(9, 5).fit(key, shown)
        return returns.expected_return(small_task.world, clone, key)

    together, alone = jax.jit(lambda keys: (jax.vmap(attack)(keys), jax.lax.map(attack, keys)))(
        keys
    )
    np.testing.assert_allclose(together, alone, rtol=1e-4)


def test_mixture_observer_is_the_uniform_average(small_task, heads, policies, shown):
    clone = Mixture(small_task.networks, heads).fit(jax.random.key(0), shown)
    expected = jnp.mean(policies, axis=0)
    np.testing.assert_allclose(returns.policy_table(clone, 9), expected, rtol=1e-5)


def test_sampled_clone_is_not_below_the_floor(shown, policies, small_mdp, small_task):
    clone = TabularCloning(9, 5).fit(jax.random.key(0), shown)
    ours = EXPECTED_RETURN(small_task.world, clone, jax.random.key(0))
    assert ours >= tabular.cloning_floor(small_mdp, policies) - 0.05


def test_ensemble_returns_are_the_exact_ones(small_task, heads, policies, small_mdp):
    ours = ENSEMBLE_RETURNS(small_task, heads, jax.random.key(0))
    exact = jax.vmap(tabular.policy_return, (None, 0))(small_mdp, policies)
    np.testing.assert_allclose(ours.experts, exact, rtol=1e-5)
    assert ours.pe == pytest.approx(float(jnp.mean(exact)), rel=1e-5)
    best = jax.nn.one_hot(jnp.argmax(policies, axis=-1), 5)
    greedy = jax.vmap(tabular.policy_return, (None, 0))(small_mdp, best)
    np.testing.assert_allclose(ours.greedy_experts, greedy, rtol=1e-4)


def test_sampled_evaluation_agrees_with_the_exact_one(small_task, heads):
    """The road of environments without a finite MDP, on one that has one."""
    blind = dataclasses.replace(small_task, world=dataclasses.replace(small_task.world, mdp=None))
    sampled = ENSEMBLE_RETURNS(blind, heads, jax.random.key(8))
    exact = ENSEMBLE_RETURNS(small_task, heads, jax.random.key(8))
    # Returns lie within 8, so the error of a mean of 1,024 is below 0.09; four of these.
    for ours, expected in zip(sampled, exact, strict=True):
        np.testing.assert_allclose(ours, expected, atol=0.36)
