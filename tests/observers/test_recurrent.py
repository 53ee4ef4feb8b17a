import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ape_jax.core import tabular
from ape_jax.demonstrations import collect
from ape_jax.evaluation import returns
from ape_jax.evaluation.defences import as_tables
from ape_jax.evaluation.deployment import step_log_probs
from ape_jax.observers import Recurrent
from ape_jax.observers.recurrent import episodes_of

COLLECT = jax.jit(collect.collect, static_argnums=(1, 3))
ROWS = jax.jit(episodes_of, static_argnums=(1, 2))
LOG_PROBS = jax.jit(step_log_probs)


def loyal_experts(mdp):
    """Each sure of its own way wherever there are two: only memory can tell which it is."""
    values = tabular.optimal_action_values(mdp)
    bias = jnp.array([[1.0, 1.0, -1.0, -1.0, 0.0], [-1.0, -1.0, 1.0, 1.0, 0.0]])
    return jax.nn.softmax(4.0 * values[None] + 2.0 * bias[:, None], axis=-1)


@pytest.fixture(scope="module")
def shown(small_task, small_mdp):
    heads = as_tables(jnp.log(loyal_experts(small_mdp)))
    return COLLECT(jax.random.key(0), small_task, heads, 20_000)[0]


@pytest.fixture(scope="module")
def clone(small_task, shown):
    observer = Recurrent(small_task.networks, 8, num_rows=2048, num_updates=300)
    return jax.jit(observer.fit)(jax.random.key(1), shown)


def test_recurrent_clone_returns_what_the_ensemble_does(clone, small_task, small_mdp):
    experts = jax.vmap(tabular.policy_return, (None, 0))(small_mdp, loyal_experts(small_mdp))
    evaluate = jax.jit(returns.expected_return, static_argnums=0)
    ours = evaluate(small_task.world, clone, jax.random.key(5))
    # 1,024 episodes whose returns lie within 8: four standard errors, and the fit's own error.
    assert float(ours) == pytest.approx(float(jnp.mean(experts)), abs=0.35)


def test_memory_makes_actions_likelier_than_any_function_of_the_state(clone, small_task, small_mdp):
    policies = loyal_experts(small_mdp)
    heads = as_tables(jnp.log(policies))
    fresh, _ = COLLECT(jax.random.key(9), small_task, heads, 20_000)
    weights = jnp.exp(tabular.observer_weights(small_mdp, policies, "posterior"))
    mixture = jnp.log(jnp.einsum("se,esa->sa", weights, policies))
    by_state = mixture[fresh.observation, fresh.action].mean()
    by_history = LOG_PROBS(clone, fresh).mean()
    assert float(by_history) > float(by_state) + 0.005


def test_step_log_probs_forget_at_the_end_of_an_episode(clone, shown):
    """The second episode alone has the log-probabilities that it has after the first."""
    begins = np.flatnonzero(np.diff(np.asarray(shown.episode), prepend=-1))
    both = jax.tree.map(lambda x: x[: begins[2]], shown)
    second = jax.tree.map(lambda x: x[begins[1] : begins[2]], shown)
    second = second._replace(episode=second.episode - 1)
    np.testing.assert_allclose(
        LOG_PROBS(clone, both)[begins[1] :], LOG_PROBS(clone, second), rtol=1e-5
    )


def test_greedy_memory_takes_the_most_probable_action(clone, shown):
    deployed = returns.greedy(clone)
    first = (clone.initial_carry(), shown.observation[0], jnp.int32(-1))
    memory, acts = clone(*first)
    greedy_memory, greedy = deployed(*first)
    np.testing.assert_allclose(greedy_memory, memory)
    assert jnp.argmax(greedy.log_probs) == jnp.argmax(acts.log_probs)
    assert float(jnp.max(greedy.log_probs)) == pytest.approx(0.0, abs=1e-3)


def test_episodes_become_rows(shown):
    rows, _, mask, begins = ROWS(shown, 9_000, 8)
    assert int(begins.sum()) == int(shown.episode[-1]) + 1
    assert int(mask.sum()) == len(shown.action)
    episode = np.asarray(shown.episode)
    for number in (0, 1, 17):
        steps = np.flatnonzero(episode == number)
        row = np.asarray(mask[number])
        assert row.sum() == len(steps)
        np.testing.assert_array_equal(rows.action[number][row], shown.action[steps])
    assert not np.any(mask[int(episode[-1]) + 1 :])


def test_recurrent_clone_fits_a_single_episode(small_task, shown):
    few = jax.tree.map(lambda x: x[:3], shown)
    few = few._replace(episode=jnp.zeros(3, int))
    observer = Recurrent(small_task.networks, 8, num_rows=4, num_updates=200, batch_size=4)
    clone = jax.jit(observer.fit)(jax.random.key(0), few)
    assert np.all(np.exp(LOG_PROBS(clone, few)) > 0.9)


def test_long_episodes_go_on_in_the_next_row(shown):
    rows, last_action, mask, begins = ROWS(shown, 20_000, 2)
    assert int(mask.sum()) == len(shown.action)
    assert int(begins.sum()) == int(shown.episode[-1]) + 1
    flat = np.asarray(rows.action)[np.asarray(mask)]
    np.testing.assert_array_equal(flat, shown.action)
    first = np.diff(np.asarray(shown.episode), prepend=-1) != 0
    expected = np.where(first, -1, np.roll(np.asarray(shown.action), 1))
    np.testing.assert_array_equal(np.asarray(last_action)[np.asarray(mask)], expected)
