import jax.numpy as jnp
import numpy as np
import pytest
import vectors

from ape_jax.core import tabular
from ape_jax.core.policies import tabulate
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.observers.one_step import OneStep
from ape_jax.observers.supported import best

FINITE = OneStep(vectors.TASK.networks, gamma=1.0)


def finite_table(policy):
    return jnp.exp(tabulate(policy, len(vectors.CELLS)).table.log_probs)


def test_best_shares_ties_among_the_allowed_actions():
    scores = jnp.array([3.0, 1.0, 2.0, 2.0])
    for allowed, expected in [
        ([1, 1, 1, 1], [1, 0, 0, 0]),
        ([0, 1, 1, 1], [0, 0, 0.5, 0.5]),
        ([0, 0, 0, 0], [1, 0, 0, 0]),
    ]:
        probs = jnp.exp(best(scores, jnp.array(allowed, bool)).log_probs)
        np.testing.assert_allclose(probs, expected)


def test_means_by_hand():
    """Two complete episodes and a cut one: s0 a1 pays 4 and 2, s0 a0 pays 2, s1 a3 is cut."""
    shown = Demonstrations(
        observation=jnp.array([0, 1, 0, 0, 1]),
        action=jnp.array([1, 2, 1, 0, 3]),
        reward=jnp.array([1.0, 3.0, 0.0, 2.0, 50.0]),
        terminated=jnp.array([False, True, False, True, False]),
        truncated=jnp.zeros(5, bool),
        episode=jnp.array([0, 0, 1, 1, 2]),
    )
    probs = finite_table(vectors.fit(FINITE, shown))
    np.testing.assert_allclose(probs[0], [0, 1, 0, 0, 0])
    np.testing.assert_allclose(probs[1], [0, 0, 1, 0, 0])
    np.testing.assert_allclose(probs[2], 0.2)


def test_a_tie_is_shared():
    shown = Demonstrations(
        observation=jnp.array([4, 4]),
        action=jnp.array([1, 3]),
        reward=jnp.array([2.0, 2.0]),
        terminated=jnp.ones(2, bool),
        truncated=jnp.zeros(2, bool),
        episode=jnp.arange(2),
    )
    probs = finite_table(vectors.fit(FINITE, shown))
    np.testing.assert_allclose(probs[4], [0, 0.5, 0, 0.5, 0])


@pytest.fixture(scope="module")
def mediocre():
    """Half of the time optimal, otherwise at random."""
    return 0.5 * vectors.OPTIMAL + 0.5 * vectors.UNIFORM


def test_finite_states_give_one_step_of_policy_iteration(mediocre):
    """Exact values of the demonstrator say how much each action that is taken falls short."""
    mdp = vectors.MDP
    values = tabular.state_values(mdp, mediocre)
    after = tabular.exact_einsum("sat,t->sa", mdp.transition, values)
    missing = jnp.max(after, axis=-1, keepdims=True) - after
    probs = finite_table(vectors.fit(FINITE, vectors.states([mediocre], 100_000)))
    # Means of about 500 episodes or more, whose returns have a deviation of about 4.
    assert float(jnp.max(jnp.sum(probs * missing, axis=-1)[1:])) < 0.8
    assert vectors.exact_return(probs) > vectors.exact_return(mediocre) + 1


def test_networks_improve_on_the_demonstrators(mediocre):
    shown = vectors.vectors([mediocre], 20_000)
    policy = vectors.fit(OneStep(vectors.NETWORKS, num_updates=1500), shown)
    optimum = vectors.exact_return(vectors.OPTIMAL)
    assert vectors.exact_return(mediocre) < optimum - 2
    assert vectors.exact_return(vectors.table(policy)) == pytest.approx(optimum, abs=0.3)


@pytest.mark.parametrize("finite", [True, False])
def test_no_action_is_taken_that_nobody_takes(finite):
    """All go right or down, to the corner that is farthest from the goal."""
    expert = jnp.zeros_like(vectors.UNIFORM).at[:, jnp.array([1, 3])].set(0.5)
    if finite:
        probs = finite_table(vectors.fit(FINITE, vectors.states([expert])))
    else:
        observer = OneStep(vectors.NETWORKS, num_updates=400)
        probs = vectors.table(vectors.fit(observer, vectors.vectors([expert])))
    assert float(jnp.max(probs[1:, jnp.array([0, 2, 4])])) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("finite", [True, False])
def test_little_data_gives_a_defined_policy(finite):
    observer = FINITE if finite else OneStep(vectors.NETWORKS, num_updates=40)
    vectors.assert_defined_on_little_data(observer, states=finite)


def test_without_complete_episodes_supported_actions_are_alike():
    shown = vectors.ODD["no end marked"]
    policy = vectors.fit(OneStep(vectors.NETWORKS, num_updates=40, least_share=1e-6), shown)
    np.testing.assert_allclose(vectors.table(policy), 0.2, rtol=1e-5)
