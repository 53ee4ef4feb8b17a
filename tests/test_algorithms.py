import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ape_jax
from ape_jax import algorithms
from ape_jax.algorithms import make_train, pg, pg_loss
from ape_jax.algorithms.task import make_task
from ape_jax.config import PGConfig, PGHypers, recipe
from ape_jax.core import mixture, tabular
from ape_jax.types import SettingError

KEYS = [jax.random.key(seed) for seed in (3, 4)]


@pytest.fixture(scope="module")
def train(small_task):
    return make_train(small_task.config, small_task.world.env)


@pytest.fixture(scope="module")
def single(train):
    return jax.jit(train)


def assert_same(ours, expected):
    """Equal parameters and metrics, to rounding."""
    (state, metrics), (expected_state, expected_metrics) = ours, expected
    chex.assert_trees_all_close(
        (state.params, metrics), (expected_state.params, expected_metrics), rtol=1e-5, atol=1e-6
    )


@pytest.fixture(scope="module")
def full_train(small_grid):
    """Training with everything on: learned weights, and multipliers where min_return is given."""
    config = PGConfig(envs_per_expert=16, num_updates=6, observer="learned")
    return make_train(config, small_grid)


@pytest.fixture(scope="module")
def full_single(full_train):
    return jax.jit(full_train)


def test_vmap_over_keys_and_any_hyperparameter_equals_a_loop(full_train, full_single):
    settings = [
        PGHypers(
            min_return=-2.0, multiplier_rate=0.05, learning_rate=0.1, temperature=0.5, gamma=0.9
        ),
        PGHypers(
            min_return=-7.0,
            multiplier_rate=0.2,
            max_multiplier=5.0,
            critic_learning_rate=0.1,
            classifier_learning_rate=0.1,
            max_grad_norm=0.5,
            ent_coef=0.1,
        ),
    ]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *settings)
    together = jax.jit(jax.vmap(full_train))(jnp.stack(KEYS), stacked)
    for index, (key, hypers) in enumerate(zip(KEYS, settings, strict=True)):
        one = jax.tree.map(lambda x, index=index: x[index], together)
        expected = full_single(key, hypers)
        assert_same(one, expected)
        np.testing.assert_allclose(one[0].multipliers, expected[0].multipliers, rtol=1e-5)
    np.testing.assert_allclose(together[1].classifier_loss[:, 0], np.log(2), rtol=1e-5)


def test_multipliers_follow_the_dual_steps_of_the_returns(full_single):
    """They start at 1/β = 3, make one step an update from its returns, and keep their bound."""
    hypers = PGHypers(min_return=-4.0, multiplier_rate=0.3, max_multiplier=8.0)
    state, metrics = full_single(KEYS[0], hypers)
    expected = jnp.full(2, 3.0)
    for before, returns in zip(metrics.multipliers, metrics.expert_returns, strict=True):
        np.testing.assert_allclose(before, expected, rtol=1e-5)
        expected = np.clip(expected * np.exp(0.3 * (-4.0 - returns)), 1 / 8, 8)
    np.testing.assert_allclose(state.multipliers, expected, rtol=1e-5)


def test_equal_multipliers_give_the_penalised_gradient_up_to_its_size(small_task):
    """λ_c = 1/β makes λ J(PE) − J(π_o) a multiple of J(PE) − β J(π_o)."""
    beta, multipliers = 0.25, jnp.full(2, 4.0)
    params = small_task.networks.init(KEYS[0])
    zeros = jax.tree.map(jnp.zeros_like, params)
    params = zeros._replace(heads=params.heads)  # Baselines of nothing: V_o is learned on its term.
    log_weights = pg.expert_log_weights(small_task, params)
    hypers = PGHypers(beta=beta)

    @jax.jit
    def gradients(params):
        episodes = pg.collect(small_task, params, log_weights, hypers, tuple(KEYS))
        arguments = (params, small_task.networks, log_weights, *episodes, hypers)
        return [
            jax.grad(pg_loss.loss, has_aux=True)(*arguments, weights)[0].heads["params"]["table"]
            for weights in (None, multipliers)
        ]

    penalised, constrained = gradients(params)
    np.testing.assert_allclose(constrained, penalised * 4 / 5, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("critic", "observer"), [("separate", "uniform"), ("shared", "learned")])
def test_loss_of_pairs_is_the_loss_of_every_step(critic, observer, small_grid):
    """All parts of the loss are equal, and so are the gradients of all parameters."""
    config = PGConfig(envs_per_expert=16, critic=critic, observer=observer)
    task = make_task(config, small_grid)
    hypers = PGHypers(beta=0.7, temperature=0.5, gamma=0.9, ent_coef=0.3)
    leaves, treedef = jax.tree.flatten(task.networks.init(KEYS[0]))
    noise = jax.random.split(KEYS[1], len(leaves))
    leaves = [x + jax.random.normal(k, x.shape) for x, k in zip(leaves, noise, strict=True)]
    params = jax.tree.unflatten(treedef, leaves)
    log_weights = pg.expert_log_weights(task, params)
    experts, observed = pg.collect(task, params, log_weights, hypers, tuple(KEYS))
    step_by_step = dataclasses.replace(task.networks, num_states=None)

    @partial(jax.jit, static_argnums=0)
    def gradients(networks):
        def both_losses(params):
            total, terms = pg_loss.loss(params, networks, log_weights, experts, observed, hypers)
            if params.classifier is not None:
                total += pg_loss.classifier_loss(params.classifier, networks, experts)
            return total, terms

        return jax.grad(both_losses, has_aux=True)(params)

    (ours, our_terms), (expected, terms) = gradients(task.networks), gradients(step_by_step)
    chex.assert_trees_all_close(ours, expected, rtol=1e-4, atol=1e-4)
    for our_term, term in zip(our_terms, terms, strict=True):
        np.testing.assert_allclose(our_term, term, rtol=1e-4)


def test_penalised_form_has_neither_multipliers_nor_classifier(single, hypers):
    state, metrics = single(KEYS[0], hypers)
    assert state.multipliers is None
    assert state.params.classifier is None
    assert metrics.multipliers is None
    assert metrics.classifier_loss is None


def test_reward_of_the_observer_reaches_its_term_alone(small_task, small_grid, hypers):
    """r̃ sees one step and leaves the experts' episodes as they are; steps after the end are 0."""

    def arrived(step):
        return 10.0 * step.terminated + step.next_observation + 0.5

    task = make_task(small_task.config, small_grid, observer_reward=arrived)
    params = task.networks.init(KEYS[0])
    log_weights = pg.expert_log_weights(task, params)
    plain, ours = (
        pg.collect(each, params, log_weights, hypers, tuple(KEYS)) for each in (small_task, task)
    )
    chex.assert_trees_all_equal(plain[0], ours[0])
    steps = plain[1]
    expected = np.where(
        steps.mask, 10.0 * steps.terminated + np.asarray(steps.next_observation) + 0.5, 0.0
    )
    np.testing.assert_allclose(ours[1].reward, expected)


def test_learned_weights_converge_to_the_posterior_of_experts_that_stand_still(small_grid):
    """A falling rate averages over the last hundred updates or more.

    So the error stays below four standard errors of a share counted in that many updates, each of
    16 episodes an expert.
    """
    config = PGConfig(envs_per_expert=16, num_updates=1000, observer="learned")
    task = make_task(config, small_grid)
    hypers = PGHypers(learning_rate=1e-9, lr_end_fraction=0.01)
    state = pg.create_state(KEYS[0], task.networks, hypers)
    policies = jnp.exp(task.networks.tabulate_experts(state.params.heads))
    states = jnp.arange(task.world.mdp.num_states)[~task.world.mdp.terminal]

    def learned(params):
        return jnp.exp(jax.vmap(pg.expert_log_weights(task, params))(states))[:, 0]

    np.testing.assert_allclose(learned(state.params), 0.5, rtol=1e-6)
    state, metrics = jax.jit(algorithms.updates, static_argnums=(0, 3))(task, state, hypers, 1000)
    posterior = jnp.exp(tabular.observer_weights(task.world.mdp, policies, "posterior"))[states, 0]
    occupancies = jax.vmap(tabular.state_occupancy, (None, 0))(task.world.mdp, policies)
    counts = 100 * 16 * jnp.sum(occupancies, axis=0)[states]
    errors = (learned(state.params) - posterior) / jnp.sqrt(posterior * (1 - posterior) / counts)
    assert np.max(np.abs(errors)) < 4.0
    assert np.max(np.abs(posterior - 0.5) / 0.5) > 0.2  # Uniform weights would be far off.
    assert metrics.classifier_loss[-1] < metrics.classifier_loss[0]


def test_learned_weights_are_held_constant_in_the_observers_term(small_grid, hypers):
    """The loss has no gradient in the classifier, as it has none in the exact posterior."""
    task = make_task(PGConfig(envs_per_expert=4, observer="learned"), small_grid)
    params = task.networks.init(KEYS[0])

    @jax.jit
    @jax.grad
    def gradient(params):
        log_weights = pg.expert_log_weights(task, params)
        episodes = pg.collect(task, params, log_weights, hypers, tuple(KEYS))
        return pg_loss.loss(params, task.networks, log_weights, *episodes, hypers)[0]

    grads = gradient(params)
    assert all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(grads.classifier))
    assert any(np.any(np.asarray(x) != 0) for x in jax.tree.leaves(grads.heads))


@pytest.mark.slow
def test_training_against_learned_weights_traps_the_posterior_clone():
    """On the gridworld experts are good, and their greedy clone with the exact posterior fails."""
    hypers = PGHypers(beta=0.3, temperature=0.1)
    task = make_task(PGConfig(observer="learned", num_updates=1500, envs_per_expert=32))

    @partial(jax.vmap, in_axes=0)
    def outcome(key):
        state = pg.create_state(key, task.networks, hypers)
        state, _ = algorithms.updates(task, state, hypers, task.config.num_updates)
        log_probs = task.networks.tabulate_experts(state.params.heads)
        policies = jnp.exp(log_probs)
        weights = tabular.observer_weights(task.world.mdp, policies, "posterior")
        clone = jax.vmap(mixture.observer_log_probs, (1, 0, None))(log_probs, weights, 0.0)
        experts = jax.vmap(tabular.policy_return, (None, 0))(task.world.mdp, policies)
        return experts, tabular.policy_return(task.world.mdp, jnp.exp(clone))

    experts, clones = jax.jit(outcome)(jax.random.split(jax.random.key(11), 2))
    assert np.all(np.asarray(experts) > -14.0)
    assert np.all(np.asarray(clones) < -85.0)


@pytest.mark.slow
def test_constrained_training_keeps_every_expert_and_fails_the_observer():
    """Three seeds of the recipe: every expert ends at min_return, and the mixture far below."""
    config, hypers = recipe("tabular", -12.0)
    task = make_task(config)

    def outcome(key):
        state = pg.create_state(key, task.networks, hypers)
        state, _ = algorithms.updates(task, state, hypers, config.num_updates)
        policies = jnp.exp(task.networks.tabulate_experts(state.params.heads))
        experts = jax.vmap(tabular.policy_return, (None, 0))(task.world.mdp, policies)
        return experts, tabular.policy_return(task.world.mdp, jnp.mean(policies, axis=0))

    experts, mixtures = jax.jit(jax.vmap(outcome))(jax.random.split(jax.random.key(12), 3))
    assert np.all(np.asarray(experts) >= -12.5)
    assert jnp.mean(mixtures) <= -75.0


def test_same_key_gives_the_same_run_and_another_key_another(single, hypers):
    first, again, other = (single(key, hypers)[0].params for key in (KEYS[0], KEYS[0], KEYS[1]))
    chex.assert_trees_all_equal(first, again)
    assert not np.array_equal(first.heads["params"]["table"], other.heads["params"]["table"])


def test_run_in_two_parts_equals_one_run(small_task, single, hypers):
    """Chunks change nothing: the state has everything."""
    state = pg.create_state(KEYS[0], small_task.networks, hypers)
    chunk = jax.jit(algorithms.updates, static_argnums=(0, 3))
    state, first = chunk(small_task, state, hypers, 3)
    state, second = chunk(small_task, state, hypers, 3)
    metrics = jax.tree.map(lambda *x: jnp.concatenate(x), first, second)
    assert_same((state, metrics), single(KEYS[0], hypers))


def test_metrics_have_one_entry_an_update(single, hypers):
    _, metrics = single(KEYS[0], hypers)
    assert metrics.pe_return.shape == (6,)
    assert metrics.expert_returns.shape == (6, 2)
    np.testing.assert_allclose(metrics.pe_return, metrics.expert_returns.mean(axis=1), rtol=1e-5)
    assert np.all(np.asarray(metrics.entropy) > 0)
    assert np.all(np.asarray(metrics.entropy) <= np.log(5) + 1e-5)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(metrics))


def test_entropy_bonus_keeps_experts_random(single):
    plain, rewarded = (
        single(KEYS[0], PGHypers(ent_coef=bonus, learning_rate=0.2))[1] for bonus in (0.0, 50.0)
    )
    assert rewarded.entropy[-1] > plain.entropy[-1] + 0.1


def test_training_can_be_differentiated_through_the_learning_rate(train):
    """A last loss as a function of a hyperparameter: finite, and not zero."""

    def last_value_loss(rate):
        _, metrics = train(KEYS[0], PGHypers(critic_learning_rate=rate))
        return metrics.value_loss[-1]

    slope = jax.jit(jax.jacfwd(last_value_loss))(0.3)
    assert np.isfinite(slope)
    assert slope != 0


def test_learning_rate_falls_linearly_to_its_end_fraction(small_task):
    """Constant gradients make Adam's step the learning rate itself."""
    hypers = PGHypers(learning_rate=0.1, critic_learning_rate=0.2, lr_end_fraction=0.25)
    state = pg.create_state(KEYS[0], small_task.networks, hypers)
    ones = jax.tree.map(jnp.ones_like, state.params)
    steps = []
    for _ in range(5):
        moved = pg.apply_gradients(state, ones, hypers, num_updates=5)
        change = jax.tree.map(
            lambda new, old: float((old - new).ravel()[0]), moved.params, state.params
        )
        steps.append((change.heads["params"]["table"], change.expert_critics["params"]["table"]))
        state = moved
    shares = np.linspace(1.0, 0.25, 5)
    np.testing.assert_allclose(steps, np.outer(shares, [0.1, 0.2]), rtol=1e-3)


def test_gradient_of_the_heads_is_clipped_by_its_global_norm(small_task):
    """Adam's first moment after one step is a tenth of the gradient that reached it."""
    hypers = PGHypers(max_grad_norm=0.5)
    state = pg.create_state(KEYS[0], small_task.networks, hypers)
    ones = jax.tree.map(jnp.ones_like, state.params)
    moved = pg.apply_gradients(state, ones, hypers)
    moments = optax.tree.get(moved.opt_state.inner_states["heads"], "mu").heads
    assert optax.tree.norm(moments) == pytest.approx(0.1 * 0.5, rel=1e-4)


def test_shared_critic_trains_on_both_returns(small_grid, hypers):
    config = PGConfig(envs_per_expert=8, num_updates=3, critic="shared")
    state, metrics = jax.jit(make_train(config, small_grid))(KEYS[0], hypers)
    assert state.params.observer_critic is None
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(metrics))


@pytest.mark.parametrize(
    ("env", "observer"), [("CartPole-v1", "uniform"), ("FrozenLake-misc", "learned")]
)
def test_mlp_heads_train_on_gymnax_environments(env, observer, hypers):
    config = PGConfig(
        env=env,
        head="mlp",
        hidden_sizes=(8,),
        envs_per_expert=4,
        num_updates=2,
        observer=observer,
    )
    _, metrics = jax.jit(make_train(config))(KEYS[0], hypers)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(metrics))


def test_posterior_observer_needs_a_finite_mdp():
    config = PGConfig(env="CartPole-v1", head="mlp", observer="posterior")
    with pytest.raises(SettingError, match=r"needs an environment with a finite MDP.*CartPole-v1"):
        make_train(config)


def test_package_offers_the_stable_names():
    for name in ("PGConfig", "PPOConfig", "make_task", "make_train", "update_from_samples"):
        assert callable(getattr(ape_jax, name))
    assert callable(ape_jax.envs.GridWorld)


def test_state_is_a_pytree_with_static_networks(small_task, hypers):
    state = pg.create_state(KEYS[0], small_task.networks, hypers)
    doubled = jax.tree.map(lambda x: x, state)
    assert doubled.networks is small_task.networks
    assert dataclasses.replace(small_task.networks) == small_task.networks


def test_make_task_takes_an_environment_that_is_not_registered(small_grid):
    task = make_task(
        PGConfig(), small_grid, small_grid.default_params.replace(max_steps_in_episode=4)
    )
    assert task.world.horizon == task.world.mdp.horizon == 4
