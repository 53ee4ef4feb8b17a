import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ape_jax.core import samples
from ape_jax.types import Transition

T, G, N, S, A = 7, 2, 5, 4, 3


@pytest.fixture(scope="module")
def episodes():
    """Blocks of trajectories [T, G, N] that end anywhere, with noise beyond their ends."""
    keys = jax.random.split(jax.random.key(0), 4)
    lengths = jax.random.randint(keys[0], (G, N), 1, T + 1)
    mask = jnp.arange(T)[:, None, None] < lengths[None]
    states = jax.random.randint(keys[1], (T, G, N), 0, S)
    reward = jax.random.normal(keys[2], (T, G, N)) * mask
    actions = jax.random.randint(keys[3], (T, G, N), 0, A)
    return Transition(states, actions, reward, mask, mask, mask, states)


def test_steps_carry_the_return_to_go_and_count_once_until_the_end(episodes):
    steps = samples.every_step(episodes, 0.9)
    expected = np.zeros((T + 1, G, N))
    for t in reversed(range(T)):
        expected[t] = np.asarray(episodes.reward[t]) + 0.9 * expected[t + 1]
    np.testing.assert_allclose(steps.returns, expected[:-1], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(steps.weights, episodes.mask)


def test_aggregated_pairs_hold_counts_means_and_variances(episodes):
    steps = samples.every_step(episodes, 1.0)
    pairs = samples.aggregate_by_state_action(steps, S, A)
    assert pairs.action.shape == (S * A, G, 1)
    mask, states, actions, returns = (
        np.asarray(x) for x in (episodes.mask, steps.observation, steps.action, steps.returns)
    )
    for entry in range(S * A):
        for block in range(G):
            here = mask[:, block] & (states[:, block] == entry // A)
            here &= actions[:, block] == entry % A
            assert pairs.observation[entry, block, 0] == entry // A
            assert pairs.action[entry, block, 0] == entry % A
            assert pairs.weights[entry, block, 0] * N == pytest.approx(here.sum())
            found = returns[:, block][here] if here.any() else np.zeros(1)
            assert pairs.returns[entry, block, 0] == pytest.approx(found.mean(), abs=1e-5)
            assert pairs.variances[entry, block, 0] == pytest.approx(found.var(), abs=1e-4)
