import jax.numpy as jnp
import numpy as np
import pytest
from hand_made import show, steps

from ape_jax.evaluation.returns import policy_table
from ape_jax.observers.empirical import action_values, empirical_model, greedy_table

# Three states, two actions. The second episode reaches its time limit, and the third is cut short.
SHOWN = steps(
    observation=[0, 1, 0, 2, 0, 0],
    action=[0, 1, 0, 0, 1, 0],
    reward=[1.0, 5.0, 2.0, 7.0, 3.0, 9.0],
    lengths=[2, 2, 2],
    ends=[0],
    limits=[1],
)


@pytest.fixture(scope="module")
def model():
    return empirical_model(SHOWN, 3, 2)


def test_counts_by_hand(model):
    expected = np.zeros((3, 2, 3))
    expected[0, 0] = [0.0, 0.5, 0.5]
    expected[0, 1] = [1.0, 0.0, 0.0]
    np.testing.assert_array_equal(model.transition, expected)


def test_an_end_has_no_successor_but_a_reward(model):
    assert model.seen[1, 1]
    assert model.reward[1, 1] == 5.0
    assert not np.any(model.transition[1, 1])


def test_steps_cut_without_an_end_are_left_out(model):
    """In state 0 action 0 led to two states: by chance, so action 1, seen once, is not trusted."""
    np.testing.assert_array_equal(model.seen, [[True, False], [False, True], [False, False]])
    np.testing.assert_array_equal(model.reward, [[1.5, 3.0], [0.0, 5.0], [0.0, 0.0]])


@pytest.mark.parametrize(("chance", "trusted"), [(False, True), (True, False)])
def test_an_action_that_was_lucky_once_is_trusted_only_without_chance(chance, trusted):
    """In state 0, action 0 was seen 40 times and ends half of them, or all; action 1 once."""
    ends = [number % 2 == 0 or not chance for number in range(40)]
    shown = steps(
        observation=[x for end in ends for x in ([0] if end else [0, 1])] + [0],
        action=[x for end in ends for x in ([0] if end else [0, 0])] + [1],
        reward=[x for end in ends for x in ([0.0] if end else [0.0, 0.0])] + [1.0],
        lengths=[1 if end else 2 for end in ends] + [1],
        ends=list(range(41)),
        limits=[],
    )
    found = empirical_model(shown, 2, 2)
    assert bool(found.seen[0, 1]) == trusted
    assert bool(found.seen[0, 0])


def test_with_all_actions_seen_a_deterministic_world_is_known_exactly(small_task, small_mdp):
    shown = show(small_task.world, np.full((9, 5), 0.2), 4_000)
    model = empirical_model(shown, 9, 5)
    alive = np.asarray(~small_mdp.terminal)
    assert np.all(model.seen[alive])
    goes_on = np.asarray(small_mdp.transition)[alive] * alive
    np.testing.assert_allclose(np.asarray(model.transition)[alive], goes_on, atol=1e-6)
    np.testing.assert_allclose(np.asarray(model.reward)[alive], -1.0, rtol=1e-6)


def test_a_state_without_a_seen_action_is_as_bad_as_can_be(model):
    """State 2 costs the lowest reward, here −2, in each of the four steps that are left."""
    costs = jnp.full((3, 2), -2.0)
    values = action_values(model, costs, 5)
    assert values[1, 1] == -2.0
    np.testing.assert_allclose(values[0, 0], -2.0 + 0.5 * (-2.0 + -2.0 * 4))
    np.testing.assert_array_equal(np.isneginf(values), ~np.asarray(model.seen))


def test_it_is_worth_zero_where_every_reward_is_positive(model):
    values = action_values(model, model.reward, 2)
    np.testing.assert_allclose(values[0, 0], 1.5 + 0.5 * 5.0)


def test_greedy_tables_share_ties_and_know_nothing_of_unseen_states():
    values = jnp.array([[1.0, 1.0, 0.0], [-jnp.inf, 2.0, -jnp.inf], [-jnp.inf] * 3])
    expected = [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [1 / 3] * 3]
    policy = greedy_table(values)
    np.testing.assert_allclose(policy_table(policy, 3), expected, atol=1e-6)
    assert np.all(np.isfinite(policy.table.log_probs))
