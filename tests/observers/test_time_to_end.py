import jax.numpy as jnp
import numpy as np
import pytest
import vectors

from ape_jax.core.policies import tabulate
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.observers.time_to_end import TimeToEnd

FINITE = TimeToEnd(vectors.TASK.networks)


def finite_table(policy):
    return jnp.exp(tabulate(policy, len(vectors.CELLS)).table.log_probs)


MEDIOCRE = 0.5 * vectors.OPTIMAL + 0.5 * vectors.UNIFORM
NETWORK = TimeToEnd(vectors.NETWORKS, num_updates=1500)


def without_rewards(shown):
    """Rewards that would spoil every sum in which they took part."""
    return shown._replace(reward=jnp.full_like(shown.reward, jnp.nan))


def test_times_by_hand():
    """From 0 it takes one step by action 1, and three by action 0; from 2 nobody arrives."""
    shown = Demonstrations(
        observation=jnp.array([0, 1, 0, 0, 2]),
        action=jnp.array([0, 2, 1, 1, 4]),
        reward=jnp.zeros(5),
        terminated=jnp.array([False, False, True, True, False]),
        truncated=jnp.array([False, False, False, False, True]),
        episode=jnp.array([0, 0, 0, 1, 2]),
    )
    probs = finite_table(vectors.fit(FINITE, shown))
    np.testing.assert_allclose(probs[0], [0, 1, 0, 0, 0])
    np.testing.assert_allclose(probs[1], [0, 0, 1, 0, 0])
    np.testing.assert_allclose(probs[2], [0, 0, 0, 0, 1])
    np.testing.assert_allclose(probs[3], 0.2)


def test_times_of_finite_states_solve_their_equations():
    """Times solve the linear equations of the mean moves, whoever moves."""
    observation = jnp.array([1, 2, 1, 2, 0, 1, 0, 3])
    episode = jnp.array([0, 0, 1, 1, 2, 2, 2, 2])
    last = jnp.append(jnp.diff(episode) == 1, True)
    rest = (jnp.zeros(8), last, jnp.zeros(8, bool), episode)
    shown = Demonstrations(observation, jnp.zeros(8, jnp.int32), *rest)
    gamma = 0.5
    times = TimeToEnd(vectors.TASK.networks, gamma=gamma).times(shown, jnp.ones(8))
    matrix, ones = np.eye(4), np.ones(4)
    matrix[0] -= gamma * np.array([0, 0.5, 0, 0.5])
    matrix[1] -= gamma * np.array([1 / 3, 0, 2 / 3, 0])
    np.testing.assert_allclose(times[:4], np.linalg.solve(matrix, ones), rtol=1e-5)
    np.testing.assert_allclose(times[4:], 2.0, rtol=1e-5)


def test_finite_states_give_shortest_paths_from_long_ones():
    shown = without_rewards(vectors.states([MEDIOCRE], 50_000))
    probs = finite_table(vectors.fit(FINITE, shown))
    optimum = vectors.exact_return(vectors.OPTIMAL)
    assert vectors.exact_return(probs) == pytest.approx(optimum, abs=0.1)


def test_networks_give_shortest_paths_from_long_ones():
    shown = without_rewards(vectors.vectors([MEDIOCRE], 20_000))
    optimum = vectors.exact_return(vectors.OPTIMAL)
    probs = vectors.table(vectors.fit(NETWORK, shown))
    assert vectors.exact_return(probs) == pytest.approx(optimum, abs=0.3)


def test_without_arrivals_supported_actions_are_alike():
    shown = vectors.states([vectors.OPTIMAL], 20_000)
    cut = without_rewards(shown)._replace(terminated=jnp.zeros_like(shown.terminated))
    probs = finite_table(vectors.fit(FINITE, cut))
    np.testing.assert_allclose(probs[1:], vectors.OPTIMAL[1:], atol=1e-6)
    cut = cut._replace(observation=vectors.CELLS[cut.observation])
    probs = vectors.table(vectors.fit(NETWORK, cut))
    np.testing.assert_allclose(probs[1:], vectors.OPTIMAL[1:], atol=1e-6)


@pytest.mark.parametrize("finite", [True, False])
def test_little_data_gives_a_defined_policy(finite):
    observer = FINITE if finite else TimeToEnd(vectors.NETWORKS, num_updates=40)
    vectors.assert_defined_on_little_data(observer, states=finite)
