import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ape_jax.core import platform, visits
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


@pytest.mark.parametrize("name", ["cpu", "gpu", "tpu"])
def test_visits_are_sums_over_the_steps_of_each_pair(episodes, name):
    with platform.tracing_for(name):
        found = jax.jit(visits.of_episodes, static_argnums=(2, 3))(episodes, 1.0, S, A)
    assert found.counts.shape == (G, S, A)
    returns = np.cumsum(np.asarray(episodes.reward)[::-1], axis=0)[::-1]
    mask, states, actions = (
        np.asarray(x) for x in (episodes.mask, episodes.observation, episodes.action)
    )
    for block in range(G):
        for state in range(S):
            for action in range(A):
                here = mask[:, block] & (states[:, block] == state) & (actions[:, block] == action)
                of_pair = returns[:, block][here]
                place = block, state, action
                assert found.counts[place] * N == pytest.approx(here.sum())
                assert found.returns[place] * N == pytest.approx(of_pair.sum(), abs=1e-5)
                assert found.squares[place] * N == pytest.approx((of_pair**2).sum(), abs=1e-5)
    np.testing.assert_allclose(found.lengths(), mask.sum(0).mean(-1), rtol=1e-6)
    rewards = np.asarray(episodes.reward).sum(0).mean(-1)
    np.testing.assert_allclose(found.undiscounted, rewards, rtol=1e-5)
