"""The Pallas kernels for finite worlds, interpreted on a CPU, against the loop over time."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ape_jax import PGConfig, PGHypers, make_train
from ape_jax.core import platform
from ape_jax.core.returns import discounted_returns
from ape_jax.envs import GridWorld, tables, tables_kernel
from ape_jax.envs.world import World

G, S, A = 2, 9, 5
GAMMA = 0.9


def forms(name, pallas):
    """Returns are sums in the kernel's order."""
    return platform.FORMS[name]._replace(pallas=pallas, parallel_returns=False)


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(tables_kernel, "EPISODES_PER_TILE", 128)


@pytest.fixture(scope="module")
def policies():
    """One of them never takes the last action."""
    probs = jax.nn.softmax(2.0 * jax.random.normal(jax.random.key(1), (G, S, A)))
    probs = probs.at[0, :, 4].set(0.0)
    return probs / jnp.sum(probs, axis=-1, keepdims=True)


def world_of(horizon):
    """A grid whose rewards use all bits of a number, and have both signs."""
    env = GridWorld(size=3, goal=(0, 1), horizon=horizon)
    mdp = env.finite_mdp()
    rewards = jax.random.normal(jax.random.key(2), (S, A)) * ~mdp.terminal[:, None]
    mdp = dataclasses.replace(mdp, reward=rewards)
    return World(env, env.default_params, horizon, mdp)


def test_no_platform_uses_the_kernels_unless_told_to():
    assert not any(forms.pallas for forms in platform.FORMS.values())


@pytest.mark.parametrize(
    ("form", "block", "horizon"),
    [("gpu", 1, 8), ("gpu", 40, 7), ("tpu", 7, 6), ("tpu", 150, 8)],
)
def test_steps_returns_and_counts_are_those_of_the_loop(
    form, block, horizon, policies, small_tiles
):
    """Bit for bit: less than a program's episodes and more, limits within four steps."""
    world = world_of(horizon)
    moves, thresholds = world.moves, tables._thresholds(policies)
    states, words = tables._start(jax.random.split(jax.random.key(3), (G, block)), world)

    @jax.jit
    def by_loop(*inputs):
        records = tables._records(*inputs, moves, horizon)
        earned = jnp.where(records % 2, jnp.ravel(moves.reward)[records >> 1], 0.0)
        returns = discounted_returns(earned, jnp.full_like(earned, GAMMA))
        return records, returns, tables.count_records(records, returns, S, A)

    @jax.jit
    def by_kernel(*inputs):
        found = tables_kernel.episodes(*inputs, moves, horizon, GAMMA)
        return *found, tables_kernel.add_up(*found, S, A)

    with platform.tracing_for(forms(form, pallas=False)):
        *expected, expected_sums = by_loop(states, words, thresholds)
    with platform.tracing_for(forms(form, pallas=True)):
        *found, sums = by_kernel(states, words, thresholds)
    assert 0.1 < np.mean(expected[0] % 2) < 1.0
    assert np.sum(found[0] % 2) == np.sum(expected[0] % 2), "what fills up blocks is not live"
    for ours, theirs in zip(found, expected, strict=True):
        ours = jnp.swapaxes(ours, 0, 1)[:horizon, :, :block]
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(sums[0], expected_sums[0])
    np.testing.assert_allclose(sums[1:], expected_sums[1:], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("block", [1, 128, 900, 1024, 5000])
@pytest.mark.parametrize("num_steps", [4, 100, 1000, 20_000])
def test_tiles_are_whole_lanes_and_cut_records_evenly(block, num_steps):
    """Both kernels choose the same tiles."""
    width = tables_kernel._tile_width(block, num_steps, S)
    lanes = -(-block // width) * width
    assert width % 128 == 0
    assert tables_kernel._tile_width(lanes, num_steps, S) == width


@pytest.mark.parametrize("form", ["gpu", "tpu"])
def test_runs_side_by_side_are_those_of_a_loop(form, policies):
    """Each with its own keys, policies and discount."""
    world = world_of(8)
    keys = jax.random.split(jax.random.key(4), (2, 2, 1, 7))
    both = jnp.stack([policies, policies[::-1]])
    gammas = jnp.array([0.5, 0.9])

    @jax.jit
    def run(keys, policies, gamma):
        return tables.ensemble_visits(*keys, policies, world, gamma)

    with platform.tracing_for(forms(form, pallas=True)):
        together = jax.jit(jax.vmap(run))(keys, both, gammas)
        for place in range(2):
            alone = run(keys[place], both[place], gammas[place])
            jax.tree.map(
                lambda x, y, place=place: np.testing.assert_allclose(x[place], y, rtol=1e-6),
                together,
                alone,
            )


def test_a_training_with_the_kernels_is_the_same(small_grid):
    train = make_train(PGConfig(envs_per_expert=6, num_updates=2), small_grid)
    runs = []
    for pallas in (False, True):
        with platform.tracing_for(forms("gpu", pallas)):
            runs.append(jax.jit(train)(jax.random.key(5), PGHypers()))
    (plain, plain_metrics), (state, metrics) = runs
    same = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(same, (state.params, metrics), (plain.params, plain_metrics))


def test_derivatives_are_refused(policies):
    keys = jax.random.split(jax.random.key(4), (2, 1, 2))

    def total(gamma):
        return jnp.sum(tables.ensemble_visits(*keys, policies, world_of(8), gamma)[0].returns)

    with (
        platform.tracing_for(forms("gpu", pallas=True)),
        pytest.raises(NotImplementedError, match="pallas=False"),
    ):
        jax.grad(total)(GAMMA)
