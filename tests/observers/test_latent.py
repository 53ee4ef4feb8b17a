"""Experts separated again: clearly different ones, a single one, and by networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ape_jax.algorithms.task import make_task
from ape_jax.config import PGConfig
from ape_jax.core import tabular
from ape_jax.core.distributions import Categorical
from ape_jax.demonstrations import collect
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.evaluation import returns
from ape_jax.evaluation.defences import as_tables
from ape_jax.evaluation.deployment import step_log_probs
from ape_jax.observers import LatentCloning, LatentMixture, TablePolicy, TabularLatent
from ape_jax.observers.latent import episode_log_probs, simplest

NUM_STEPS = 20_000
COLLECT = jax.jit(collect.collect, static_argnums=(1, 3))


def demonstrate(task, policies, key=0, num_steps=NUM_STEPS):
    heads = as_tables(jnp.log(jnp.maximum(policies, 1e-9)))
    return COLLECT(jax.random.key(key), task, heads, num_steps)


def two_experts(mdp):
    """Both reach the goal; one prefers to move along the row first, the other along the column."""
    values = tabular.optimal_action_values(mdp)
    vertical = jax.nn.softmax(3.0 * values + jnp.array([1.5, 1.5, -1.5, -1.5, 0.0])[None])
    horizontal = jax.nn.softmax(3.0 * values + jnp.array([-1.5, -1.5, 1.5, 1.5, 0.0])[None])
    return jnp.stack([vertical, horizontal])


@pytest.fixture(scope="module")
def fitted(small_task, small_mdp):
    policies = two_experts(small_mdp)
    shown, hidden = demonstrate(small_task, policies)
    observer = TabularLatent(9, 5, max_modes=3)
    return policies, shown, hidden, jax.jit(observer.fit)(jax.random.key(1), shown)


def test_latent_finds_as_many_modes_as_there_are_experts(fitted):
    shares = np.asarray(fitted[3].shares)
    assert shares.sum() == pytest.approx(1.0, abs=1e-5)
    assert (shares > 0.1).sum() == 2
    assert np.sort(shares)[-1] < 0.65


def test_latent_recovers_each_expert(fitted, small_mdp):
    """Each mode returns what its expert does, and acts as it where it often is."""
    policies, _, _, modes = fitted
    tables = jax.vmap(lambda policy: returns.policy_table(policy, 9))(modes.policies)
    order = np.argsort(-np.asarray(modes.shares))[:2]
    distance = jnp.abs(tables[order][:, None] - policies[None]).sum(-1)
    occupancies = jax.vmap(tabular.state_occupancy, (None, 0))(small_mdp, policies)
    apart = np.asarray(jnp.sum(distance * occupancies[None], -1) / jnp.sum(occupancies, -1)[None])
    matched = apart if apart[0, 0] + apart[1, 1] < apart[0, 1] + apart[1, 0] else apart[:, ::-1]
    # Total variation of half of it: the modes act as their experts with 95 % agreement or more.
    assert np.all(np.diag(matched) / 2 < 0.05)


def test_latent_tells_who_acted_in_an_episode(fitted):
    """Assignments follow the hidden expert as far as the ideal observer can tell, and ≥ 95 % of
    those of whom it is sure."""
    policies, shown, hidden, modes = fitted
    num_episodes = int(shown.episode[-1]) + 1
    first = np.flatnonzero(np.diff(np.asarray(shown.episode), prepend=-1))
    truth = np.asarray(hidden)[first]

    def joint(tables):
        log_probs = jnp.log(jnp.maximum(tables, 1e-9))[:, shown.observation, shown.action].T
        return np.asarray(episode_log_probs(log_probs, shown, num_episodes))

    ideal = joint(policies)
    sure = np.abs(ideal[:, 0] - ideal[:, 1]) > 4.0
    assert sure.mean() > 0.1
    order = np.argsort(-np.asarray(modes.shares))[:2]
    tables = jax.vmap(lambda policy: returns.policy_table(policy, 9))(modes.policies)[order]
    found = joint(tables).argmax(axis=1)
    same = (found == truth)[sure].mean()
    assert max(same, 1 - same) >= 0.95


def test_latent_of_one_expert_is_one_policy(small_task, small_mdp):
    expert = two_experts(small_mdp)[0]
    shown, _ = demonstrate(small_task, jnp.stack([expert, expert]), key=3)
    modes = jax.jit(TabularLatent(9, 5, max_modes=2).fit)(jax.random.key(1), shown)
    found = jax.vmap(
        lambda policy: tabular.policy_return(small_mdp, returns.policy_table(policy, 9))
    )(modes.policies)
    expected = tabular.policy_return(small_mdp, expert)
    assert float(modes.shares @ found) == pytest.approx(float(expected), abs=0.05)


def test_episode_log_probs_sums_each_episode():
    steps = Demonstrations(
        *[jnp.zeros(5, int)] * 2,
        jnp.zeros(5),
        *[jnp.zeros(5, bool)] * 2,
        episode=jnp.array([0, 0, 1, 2, 2]),
    )
    log_probs = jnp.arange(10.0).reshape(5, 2)
    expected = [[2, 4], [4, 5], [14, 16], [0, 0]]
    np.testing.assert_array_equal(episode_log_probs(log_probs, steps, 4), expected)


def test_networks_separate_experts_as_tables_do(small_grid, small_task, small_mdp):
    policies = two_experts(small_mdp)
    shown, _ = demonstrate(small_task, policies, key=5)
    networks = make_task(PGConfig(head="mlp", hidden_sizes=(16,)), small_grid).networks
    observer = LatentCloning(networks, max_modes=2, num_updates=300, batch_size=2048)
    modes = jax.jit(observer.fit)(jax.random.key(2), shown)
    assert np.all(np.asarray(modes.shares) > 0.3)
    found = jax.vmap(
        lambda policy: tabular.policy_return(small_mdp, returns.policy_table(policy, 9))
    )(modes.policies)
    expected = jax.vmap(tabular.policy_return, (None, 0))(small_mdp, policies)
    np.testing.assert_allclose(np.sort(found), np.sort(expected), atol=0.25)
    tables = jax.vmap(lambda policy: returns.policy_table(policy, 9))(modes.policies)
    assert float(jnp.abs(tables[0] - tables[1]).sum(-1).max()) > 0.8


def test_latent_vmaps_over_seeds(small_task, small_mdp):
    policies = two_experts(small_mdp)
    shown = [demonstrate(small_task, policies, key, 2_000)[0] for key in (0, 1)]
    observer = TabularLatent(9, 5, max_modes=2, num_restarts=2, num_iterations=10)
    keys = jax.random.split(jax.random.key(0), 2)

    @jax.jit
    def both(keys, shown):
        alone = jax.lax.map(lambda one: observer.fit(*one), (keys, shown))
        return jax.vmap(observer.fit)(keys, shown).shares, alone.shares

    together, alone = both(keys, jax.tree.map(lambda *x: jnp.stack(x), *shown))
    np.testing.assert_allclose(together, alone, atol=1e-3)


def test_the_simplest_model_within_a_standard_error_is_chosen():
    base = jnp.arange(100.0) % 3.0
    noise = jnp.where(jnp.arange(100) % 2 == 0, 1.0, -1.0)
    rows = jnp.stack([base - 1.0, base, base + 0.05 + noise])
    assert simplest(rows) == 1
    assert simplest(rows[:, ::-1]) == 1
    assert simplest(jnp.stack([base, base - 1.0])) == 0


def test_latent_mixture_as_a_policy_draws_one_mode_for_each_episode(small_task, small_mdp):
    """Step by step its likelihood of an episode is the one of the draw, and so is its return."""
    policies = two_experts(small_mdp)
    shares = jnp.array([0.3, 0.7])
    mixture = LatentMixture(TablePolicy(Categorical(jnp.log(policies))), shares, 5)
    shown, _ = demonstrate(small_task, policies, num_steps=300)
    num_episodes = int(shown.episode[-1]) + 1
    log_probs = jnp.log(policies)[:, shown.observation, shown.action].T
    joint = jnp.log(shares)[None] + episode_log_probs(log_probs, shown, num_episodes)
    ours = jax.ops.segment_sum(step_log_probs(mixture, shown), shown.episode, num_episodes)
    np.testing.assert_allclose(ours, jax.nn.logsumexp(joint, axis=-1), rtol=1e-4, atol=1e-4)

    exact = shares @ jax.vmap(tabular.policy_return, (None, 0))(small_mdp, policies)
    evaluate = jax.jit(returns.expected_return, static_argnums=0)
    sampled = evaluate(small_task.world, mixture, jax.random.key(0))
    # 1,024 episodes whose returns lie within 8: four standard errors.
    assert float(sampled) == pytest.approx(float(exact), abs=0.3)
