import jax.numpy as jnp
import numpy as np
import pytest
import vectors

from ape_jax.observers.time_to_end import TimeToEnd

MEDIOCRE = 0.5 * vectors.OPTIMAL + 0.5 * vectors.UNIFORM
NETWORK = TimeToEnd(vectors.NETWORKS, num_updates=1500)


def without_rewards(shown):
    """Rewards that would spoil every sum in which they took part."""
    return shown._replace(reward=jnp.full_like(shown.reward, jnp.nan))


def test_networks_give_shortest_paths_from_long_ones():
    shown = without_rewards(vectors.vectors([MEDIOCRE], 20_000))
    optimum = vectors.exact_return(vectors.OPTIMAL)
    probs = vectors.table(vectors.fit(NETWORK, shown))
    assert vectors.exact_return(probs) == pytest.approx(optimum, abs=0.3)


def test_without_arrivals_supported_actions_are_alike():
    shown = without_rewards(vectors.vectors([vectors.OPTIMAL], 20_000))
    cut = shown._replace(terminated=jnp.zeros_like(shown.terminated))
    probs = vectors.table(vectors.fit(NETWORK, cut))
    np.testing.assert_allclose(probs[1:], vectors.OPTIMAL[1:], atol=1e-6)


def test_little_data_gives_a_defined_policy():
    observer = TimeToEnd(vectors.NETWORKS, num_updates=40)
    vectors.assert_defined_on_little_data(observer, states=False)
