import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand_made import show, steps

from ape_jax.core import tabular
from ape_jax.core.tabular import FiniteMDP
from ape_jax.evaluation.returns import policy_table
from ape_jax.observers import OfflineQ

STATES, ACTIONS, HORIZON = 7, 3, 9
END = STATES


def world(seed):
    """Successors and rewards [S, A] of a deterministic world; rewards are quarters, so exact."""
    generator = np.random.default_rng(seed)
    successors = generator.integers(0, STATES + 1, (STATES, ACTIONS))
    return successors, generator.integers(-4, 5, (STATES, ACTIONS)) / 4


def as_mdp(successors, rewards):
    transition = np.zeros((STATES + 1, ACTIONS, STATES + 1), np.float32)
    transition[END, :, END] = 1.0
    for state, action in np.ndindex(STATES, ACTIONS):
        transition[state, action, successors[state, action]] = 1.0
    return FiniteMDP(
        transition=jnp.asarray(transition),
        reward=jnp.asarray(np.vstack([rewards, np.zeros(ACTIONS)]), jnp.float32),
        start=jnp.append(jnp.full(STATES, 1 / STATES), 0.0),
        terminal=jnp.arange(STATES + 1) == END,
        horizon=HORIZON,
    )


def show_pairs(successors, rewards, pairs):
    """Each pair of state and action once; another step shows where it led."""
    state, action = np.asarray(pairs).T
    following = successors[state, action]
    observation = np.stack([state, np.where(following == END, 0, following)], axis=1)
    reward = np.stack([rewards[state, action], np.full(len(state), 100.0)], axis=1)
    shown = steps(observation.ravel(), np.repeat(action, 2), [2] * len(state), reward.ravel())
    # The step after an end is an episode of its own, which is cut: it says nothing.
    ended = np.repeat(following == END, 2)
    begins = np.tile([True, False], len(state)) | ended
    terminated = ended & np.tile([True, False], len(state))
    return shown._replace(
        terminated=jnp.asarray(terminated), episode=jnp.asarray(np.cumsum(begins) - 1)
    )


@jax.jit
def fit(shown):
    return policy_table(OfflineQ(STATES, ACTIONS, HORIZON).fit(jax.random.key(0), shown), STATES)


@jax.jit
def optimum(mdp):
    best = tabular.optimal_policy(mdp)
    return best, tabular.policy_return(mdp, best)


@pytest.mark.parametrize("seed", range(8))
def test_with_everything_seen_it_is_the_optimal_policy(seed):
    successors, rewards = world(seed)
    pairs = list(np.ndindex(STATES, ACTIONS))
    ours = fit(show_pairs(successors, rewards, pairs))
    best, _ = optimum(as_mdp(successors, rewards))
    np.testing.assert_allclose(ours, best[:STATES], atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_no_action_is_taken_that_was_never_seen(seed):
    successors, rewards = world(seed)
    generator = np.random.default_rng(seed)
    pairs = generator.permutation(list(np.ndindex(STATES - 2, ACTIONS)))[:8]
    ours = np.asarray(fit(show_pairs(successors, rewards, np.tile(pairs, (3, 1))[:21])))
    seen = np.zeros((STATES, ACTIONS), bool)
    seen[tuple(pairs.T)] = True
    known = seen.any(axis=1)
    assert not np.any(ours[known] * ~seen[known])
    np.testing.assert_allclose(ours[~known], 1 / ACTIONS, rtol=1e-6)


def test_it_finds_the_optimal_return_in_random_behaviour(small_task, small_mdp):
    """It imitates nobody: the demonstrators return far less."""
    shown = show(small_task.world, np.full((9, 5), 0.2), 4_000)
    clone = OfflineQ(9, 5, small_task.world.horizon).fit(jax.random.key(0), shown)
    ours = tabular.policy_return(small_mdp, policy_table(clone, 9))
    best = tabular.policy_return(small_mdp, tabular.optimal_policy(small_mdp))
    at_random = tabular.policy_return(small_mdp, jnp.full((9, 5), 0.2))
    assert float(ours) == pytest.approx(float(best), rel=1e-6)
    assert float(at_random) < float(best) - 2.0


@pytest.mark.parametrize("seed", range(3))
def test_one_deterministic_expert_is_repeated_where_it_goes(seed, small_task):
    expert = jax.nn.one_hot(jax.random.randint(jax.random.key(seed), (9,), 0, 5), 5)
    shown = show(small_task.world, expert, 4_000, seed)
    clone = OfflineQ(9, 5, small_task.world.horizon).fit(jax.random.key(0), shown)
    # The last step of an episode that was cut says nothing of its action.
    last = np.append(np.diff(shown.episode) != 0, True)
    told = np.unique(np.asarray(shown.observation)[~last | np.asarray(shown.terminated)])
    np.testing.assert_allclose(policy_table(clone, 9)[told], expert[told], atol=1e-6)
