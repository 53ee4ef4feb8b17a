"""Visits by look-ups in tables: every form of the loop against recorded episodes and exact ones."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments.misc.frozen_lake import FrozenLake

from ape_jax import envs
from ape_jax.core import platform, tabular, visits
from ape_jax.core.distributions import Categorical
from ape_jax.core.policies import TablePolicy
from ape_jax.envs import GridWorld, rollout, tables
from ape_jax.envs.world import World

E, S, A = 2, 9, 5
GAMMA = 0.9


@pytest.fixture(scope="module")
def policies():
    """Two experts and an observer; one of the experts never stays."""
    probs = jax.nn.softmax(2.0 * jax.random.normal(jax.random.key(1), (E + 1, S, A)))
    probs = probs.at[0, :, 4].set(0.0)
    return probs / jnp.sum(probs, axis=-1, keepdims=True)


def world_of(env, params=None):
    params = env.default_params if params is None else params
    mdp = envs.finite_mdp(env, params)
    return World(env, params, int(params.max_steps_in_episode), mdp)


@pytest.fixture(scope="module")
def world(small_grid):
    return world_of(small_grid)


def keys_of(block):
    return jax.random.split(jax.random.key(3), (2, E, block))


@partial(jax.jit, static_argnums=(2, 3))
def recorded(keys, policies, world, gamma=GAMMA):
    """Visits of the recorded episodes of the same keys."""
    experts = TablePolicy(Categorical(jnp.log(policies[:-1])))
    observer = TablePolicy(Categorical(jnp.log(policies[-1])))
    own, others = rollout.ensemble_episodes(keys[0], keys[1].reshape(-1), experts, observer, world)
    return visits.of_episodes(own, gamma, S, A), visits.of_one_policy(others, gamma, S, A)


def looked_up(keys, policies, world, gamma=GAMMA):
    return tables.ensemble_visits(keys[0], keys[1], policies, world, gamma)


def assert_same(found, expected):
    """Counts are exact; sums of returns are rounded in another order."""
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.counts, theirs.counts, rtol=1e-6)
        np.testing.assert_allclose(ours.undiscounted, theirs.undiscounted, rtol=1e-6)
        np.testing.assert_allclose(ours.returns, theirs.returns, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(ours.squares, theirs.squares, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("block", [1, 7, 24])
def test_every_form_counts_the_episodes_that_a_rollout_records(form, block, policies, world):
    """Full and uneven queues; the limit of eight steps cuts some episodes, and others end early."""
    expected = recorded(keys_of(block), policies, world)
    lengths = [float(x) for x in expected[0].lengths()]
    assert block == 1 or 1.0 < min(lengths) < 8.0
    with platform.tracing_for(form):
        found = jax.jit(looked_up, static_argnums=2)(keys_of(block), policies, world)
    assert_same(found, expected)


def test_a_limit_that_is_no_multiple_of_a_block_of_random_bits(policies):
    world = world_of(GridWorld(size=3, goal=(0, 1), horizon=7))
    expected = recorded(keys_of(7), policies, world)
    for form in ("cpu", "tpu"):
        with platform.tracing_for(form):
            found = jax.jit(looked_up, static_argnums=2)(keys_of(7), policies, world)
        assert_same(found, expected)


def test_a_world_too_large_for_the_number_of_a_lane_has_no_lanes(policies, world, monkeypatch):
    with_lanes = jax.jit(looked_up, static_argnums=2)(keys_of(7), policies, world)
    monkeypatch.setattr(tables, "LARGEST_LANE", (E + 1) * S * 2**4 - 1)
    monkeypatch.delattr(tables, "_sums_by_lanes")
    without = jax.jit(lambda keys: looked_up(keys, policies, world))(keys_of(7))
    assert_same(without, with_lanes)


@pytest.mark.parametrize("block", [1, 7, 9])
def test_lanes_have_room_for_episodes_that_all_reach_the_limit(block, world):
    """Nobody moves, so that no lane is ever free before its time; queues are full and uneven."""
    staying = jnp.zeros((E + 1, S, A)).at[..., 4].set(1.0)
    found = jax.jit(looked_up, static_argnums=2)(keys_of(block), staying, world)
    assert_same(found, recorded(keys_of(block), staying, world))
    np.testing.assert_allclose(found[0].lengths(), 8.0, rtol=1e-6)


def test_runs_side_by_side_share_a_loop_and_change_nothing(policies, world):
    """One run has episodes of full length, and another has short ones."""
    staying = jnp.zeros((E + 1, S, A)).at[..., 4].set(1.0)
    both = jnp.stack([staying, policies])
    together = jax.jit(jax.vmap(partial(looked_up, world=world), (None, 0)))(keys_of(7), both)
    for place in range(2):
        alone = jax.jit(looked_up, static_argnums=2)(keys_of(7), both[place], world)
        assert_same(jax.tree.map(lambda x, place=place: x[place], together), alone)


def test_means_are_the_exact_ones(policies, world, small_mdp):
    """Occupancies and returns of 4,000 episodes, within four and a half standard errors."""
    experts, observer = jax.jit(looked_up, static_argnums=(2, 3))(
        keys_of(2000), policies, world, 1.0
    )
    occupancies = jax.vmap(tabular.state_occupancy, (None, 0))(small_mdp, policies)
    expected = occupancies[..., None] * policies
    found = jnp.concatenate([experts.counts, observer.counts[None]])
    num = np.array([2000, 2000, 4000])[:, None, None]
    # A state is visited at most eight times in an episode.
    error = np.sqrt(8.0 * np.asarray(expected) / num) + 1e-6
    assert np.max(np.abs(np.asarray(found - expected)) / error) < 4.5
    returns = jax.vmap(tabular.policy_return, (None, 0))(small_mdp, policies)
    mean = jnp.append(experts.undiscounted, observer.undiscounted)
    np.testing.assert_allclose(mean, returns, atol=4.5 * 4.0 / np.sqrt(2000))


def test_probabilities_in_steps_of_sixteen_bits_hardly_change_a_return(random_policies, small_mdp):
    """The exact return of the policies that are sampled, on the small grid and on the paper's."""
    large = GridWorld().finite_mdp()
    sharp = jax.nn.softmax(6.0 * jax.random.normal(jax.random.key(9), (20, 100, 5)))
    for mdp, policies in ((small_mdp, random_policies), (large, sharp)):
        cuts = np.asarray(tables._thresholds(policies)) * 2.0**-16
        ends = np.zeros((*cuts.shape[:-1], 1)), np.ones((*cuts.shape[:-1], 1))
        sampled = np.diff(np.concatenate([ends[0], cuts, ends[1]], axis=-1))
        assert np.abs(sampled - policies).max() <= 1.01 * 2.0**-16
        returns = jax.jit(jax.vmap(tabular.policy_return, (None, 0)))
        rounded, exact = returns(mdp, jnp.asarray(sampled, jnp.float32)), returns(mdp, policies)
        assert np.abs(rounded - exact).max() < 0.05
        assert np.abs(rounded - exact).mean() < 0.005


def test_worlds_of_chance_have_no_tables(world, small_grid):
    assert world.moves is not None
    assert world_of(FrozenLake()).moves is None
    assert world_of(FrozenLake(is_slippery=False)).moves is not None
    assert World(small_grid, small_grid.default_params, 8).moves is None
    shorter = World(small_grid, small_grid.default_params, 5, small_grid.finite_mdp())
    assert shorter.moves is None


def test_returns_can_be_differentiated_in_the_discount(policies, world):
    """In reverse mode without lanes, and in forward mode with them."""

    def total(gamma):
        return jnp.sum(looked_up(keys_of(7), policies, world, gamma)[0].returns)

    forward = jax.jit(jax.jacfwd(total))(GAMMA)
    with platform.tracing_for("gpu"):
        reverse = jax.jit(jax.grad(total))(GAMMA)
    np.testing.assert_allclose(forward, reverse, rtol=1e-4)
    with pytest.raises(ValueError, match="Reverse-mode"):
        jax.grad(total)(GAMMA)
