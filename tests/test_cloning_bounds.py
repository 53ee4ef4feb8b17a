"""Floor and ceiling of the ideal sampling clone: examples of where they are tight or not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_mdp
from hypothesis import given, settings
from hypothesis import strategies as st

from ape_jax.core import tabular
from ape_jax.core.tabular import FiniteMDP
from ape_jax.envs import GridWorld

returns_of = jax.jit(jax.vmap(tabular.policy_return, (None, 0)))


@jax.jit
def clone_of(mdp, policies):
    weights = jnp.exp(tabular.observer_weights(mdp, policies, "posterior"))
    return jnp.einsum("se,esa->sa", weights, policies, precision="highest")


@jax.jit
def bounded(mdp, policies):
    """Floor, return of the ideal sampling clone, ceiling, and the ensemble's return."""
    return jnp.stack(
        [
            tabular.cloning_floor(mdp, policies),
            tabular.policy_return(mdp, clone_of(mdp, policies)),
            tabular.cloning_ceiling(mdp, policies),
            jnp.mean(returns_of(mdp, policies)),
        ]
    )


def process(moves, reward, start, horizon):
    """Deterministic moves [S, A] to a state each; the last state is the end."""
    num_states = len(reward)
    return FiniteMDP(
        transition=jax.nn.one_hot(jnp.asarray(moves), num_states),
        reward=jnp.asarray(reward, jnp.float32),
        start=jax.nn.one_hot(start, num_states),
        terminal=jnp.arange(num_states) == num_states - 1,
        horizon=horizon,
    )


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([1, 3]),
    st.sampled_from([2, 30]),
    st.sampled_from([-3.0, 0.0, 3.0]),
)
def test_ideal_sampling_clone_is_between_floor_and_ceiling(seed, num_experts, horizon, shift):
    """With rewards of both signs, and with nearly all of one sign."""
    mdp = random_mdp(seed, horizon=horizon)
    mdp = mdp.replace(reward=mdp.reward + shift)
    logits = jax.random.normal(jax.random.key(seed + 1), (num_experts, *mdp.reward.shape))
    floor, clone, ceiling, _ = bounded(mdp, jax.nn.softmax(4.0 * logits)).tolist()
    assert floor - 1e-3 <= clone <= ceiling + 1e-3


CELLS, LIMIT, EXPERTS = 2, 100, 20


@pytest.fixture(scope="module")
def corridor():
    """Two cells lead to the goal, and a side road of 98 cells leads back to the second of them.

    Nineteen experts go straight on. The first takes the side road from either cell: it is back in
    the second cell at step 99, and the limit cuts its episode one step later.
    """
    side = LIMIT - CELLS
    goal = CELLS + side
    ahead = np.append(np.arange(1, goal + 1), goal)
    ahead[CELLS - 1], ahead[goal - 1] = goal, CELLS - 1
    aside = ahead.copy()
    aside[:CELLS] = CELLS
    reward = np.where(np.arange(goal + 1) == goal, 0.0, -1.0)
    mdp = process(np.stack([ahead, aside], 1), np.stack([reward] * 2, 1), 0, LIMIT)
    experts = np.zeros((EXPERTS, goal + 1), int)
    experts[0] = 1
    return mdp, jax.nn.one_hot(jnp.asarray(experts), 2)


def test_corridor_shows_that_the_floor_is_nearly_tight(corridor):
    """The clone is on the side road with probability 1/20 in one cell, and 1/20 in the other."""
    floor, clone, _, ensemble = bounded(*corridor).tolist()
    assert ensemble == pytest.approx(-(0.05 * 100 + 0.95 * 2), abs=1e-3)
    assert floor == pytest.approx(ensemble - 0.05 * 100, abs=1e-3)
    lost = 1 - 0.95**2
    assert clone == pytest.approx(-(lost * 100 + (1 - lost) * 2), abs=1e-3)
    assert (ensemble - clone) / (ensemble - floor) == pytest.approx(0.931, abs=1e-3)


def test_corridor_that_pays_shows_that_the_ceiling_is_nearly_tight(corridor):
    mdp, policies = corridor
    _, clone, ceiling, ensemble = bounded(mdp.replace(reward=-mdp.reward), policies).tolist()
    assert (clone - ensemble) / (ceiling - ensemble) == pytest.approx(0.931, abs=1e-3)


def longest_shortest_path(mdp):
    """Steps from the worst start to the end, by the shortest way."""
    reach = np.asarray(mdp.transition).max(axis=1) > 0
    arrived, steps = np.asarray(mdp.terminal), 0
    while not arrived[np.asarray(mdp.start) > 0].all():
        arrived, steps = arrived | (reach & arrived).any(axis=1), steps + 1
    return steps


def gap_price_and_factor(mdp, policies):
    _, clone, _, ensemble = bounded(mdp, policies).tolist()
    best = float(tabular.policy_return(mdp, tabular.optimal_policy(mdp)))
    factor = mdp.horizon / (mdp.horizon - longest_shortest_path(mdp))
    return ensemble - clone, best - ensemble, factor


def test_gap_costs_the_owner_nearly_as_much_on_the_paper_grid():
    """At −1 a step: gap ≤ price · H / (H − L), for experts that arrive and for lost ones."""
    mdp = GridWorld().finite_mdp()
    values = tabular.optimal_action_values(mdp)
    found = []
    for seed, scale in enumerate(np.linspace(0.2, 1.5, 12)):
        noise = scale * jax.random.normal(jax.random.key(seed), (3, *values.shape))
        policies = jax.nn.softmax(4.0 * (values[None] + noise))
        gap, price, factor = gap_price_and_factor(mdp, policies)
        assert factor == pytest.approx(100 / 82)
        assert gap <= factor * price + 1e-3
        found.append((price, gap / price))
    prices, shares = np.array(found).T
    assert prices.min() < 2 < 50 < prices.max()
    assert shares.max() > 0.05  # The clone does lose something to the limit.


def test_gap_of_the_corridor_is_nearly_the_largest_that_its_price_allows(corridor):
    gap, price, factor = gap_price_and_factor(*corridor)
    assert factor == pytest.approx(100 / 98)
    assert 0.93 * factor * price < gap <= factor * price


def test_floor_is_false_with_a_discount():
    """Two ways to a room, one step longer for the second expert, who alone is punished there.

    Nothing is cut. The clone is punished in half of the visits to the room, by either way, and so
    sooner than the second expert. Without a discount that is the same.
    """
    room, detour, end = 1, 2, 3
    moves = [[room, detour], [end, end], [room, room], [end, end]]
    mdp = process(moves, [[0, 0], [0, -1], [0, 0], [0, 0]], 0, 10)
    policies = jax.nn.one_hot(jnp.array([[0, 0, 0, 0], [1, 1, 0, 0]]), 2)
    clone = clone_of(mdp, policies)
    floor, undiscounted, ceiling, ensemble = bounded(mdp, policies).tolist()
    np.testing.assert_allclose([floor, undiscounted, ceiling], ensemble, atol=1e-6)
    # A discount of one half is the return of a process that ends at each step with one half.
    ends = jax.nn.one_hot(end, 4)
    discounted = mdp.replace(transition=0.5 * mdp.transition + 0.5 * ends[None, None])
    assert jnp.mean(returns_of(discounted, policies)) == pytest.approx(-1 / 8)
    assert tabular.policy_return(discounted, clone) == pytest.approx(-3 / 16)


def test_bounds_say_little_where_the_limit_cuts_every_good_episode():
    """One state that pays one a step, as CartPole does: the clone gets all, the floor does not."""
    mdp = process([[0], [1]], [[1.0], [0.0]], 0, 500)
    floor, clone, ceiling, ensemble = bounded(mdp, jnp.ones((1, 2, 1))).tolist()
    assert clone == ensemble == pytest.approx(500)
    assert floor == pytest.approx(500 * (1 - (500 / 501) ** 500), rel=1e-4)
    assert floor == pytest.approx(315.9, abs=0.1)
    assert ceiling == pytest.approx(1000)


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_training_against_the_ideal_sampler_is_training_for_or_against_the_task(beta):
    """Nothing is cut, so the objective is (1 − β) J(PE): its gradient turns round at β = 1."""
    mdp = random_mdp(3, num_states=6, horizon=400)
    mdp = mdp.replace(transition=0.8 * mdp.transition + 0.2 * mdp.terminal[None, None])
    logits = jax.random.normal(jax.random.key(0), (3, *mdp.reward.shape))

    def objective(logits):
        return tabular.exact_objective(
            logits, mdp, beta, weights="posterior", differentiate_weights=True
        )

    def ensemble(logits):
        return jnp.mean(returns_of(mdp, jax.nn.softmax(logits)))

    ours, gradient = jax.jit(jax.value_and_grad(objective))(logits)
    value, expected = jax.jit(jax.value_and_grad(ensemble))(logits)
    assert ours == pytest.approx((1 - beta) * float(value), abs=1e-4)
    np.testing.assert_allclose(gradient, (1 - beta) * expected, atol=1e-4)
    assert jnp.abs(expected).max() > 0.01
