import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ape_jax
from ape_jax import learner
from ape_jax.config import Hypers, TrainConfig
from ape_jax.learner import make_task, make_train
from ape_jax.types import SettingError

KEYS = [jax.random.key(seed) for seed in (3, 4)]


@pytest.fixture(scope="module")
def train(small_task):
    return make_train(small_task.config, small_task.env)


@pytest.fixture(scope="module")
def single(train):
    return jax.jit(train)


def assert_same(ours, expected):
    """Equal parameters and metrics, to rounding."""
    (state, metrics), (expected_state, expected_metrics) = ours, expected
    chex.assert_trees_all_close(
        (state.params, metrics), (expected_state.params, expected_metrics), rtol=1e-5, atol=1e-6
    )


def test_vmap_over_keys_equals_a_loop(train, single, hypers):
    together = jax.jit(jax.vmap(train, in_axes=(0, None)))(jnp.stack(KEYS), hypers)
    for index, key in enumerate(KEYS):
        one = jax.tree.map(lambda x, index=index: x[index], together)
        assert_same(one, single(key, hypers))


def test_vmap_over_any_hyperparameter_equals_a_loop(train, single):
    settings = [
        Hypers(beta=0.0, learning_rate=0.1, temperature=0.5, discount=0.9, entropy_bonus=0.1),
        Hypers(beta=0.7, learning_rate=0.02, critic_learning_rate=0.1, max_grad_norm=0.5),
    ]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *settings)
    together = jax.jit(jax.vmap(train, in_axes=(None, 0)))(KEYS[0], stacked)
    for index, hypers in enumerate(settings):
        one = jax.tree.map(lambda x, index=index: x[index], together)
        assert_same(one, single(KEYS[0], hypers))


def test_same_key_gives_the_same_run_and_another_key_another(single, hypers):
    first, again, other = (single(key, hypers)[0].params for key in (KEYS[0], KEYS[0], KEYS[1]))
    chex.assert_trees_all_equal(first, again)
    assert not np.array_equal(first.heads["params"]["table"], other.heads["params"]["table"])


def test_run_in_two_parts_equals_one_run(small_task, single, hypers):
    """Chunks change nothing: the state carries everything."""
    state = learner.create_state(KEYS[0], small_task.networks, hypers)
    chunk = jax.jit(learner.updates, static_argnums=(0, 3))
    state, first = chunk(small_task, state, hypers, 2)
    state, second = chunk(small_task, state, hypers, 4)
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
        single(KEYS[0], Hypers(entropy_bonus=bonus, learning_rate=0.2))[1] for bonus in (0.0, 50.0)
    )
    assert rewarded.entropy[-1] > plain.entropy[-1] + 0.1


def test_training_can_be_differentiated_through_the_learning_rate(train):
    """A last loss as a function of a hyperparameter: finite, and not zero."""

    def last_value_loss(rate):
        _, metrics = train(KEYS[0], Hypers(critic_learning_rate=rate))
        return metrics.value_loss[-1]

    slope = jax.jit(jax.jacfwd(last_value_loss))(0.3)
    assert np.isfinite(slope)
    assert slope != 0


def test_learning_rate_falls_linearly_to_its_final_share(small_task):
    """Constant gradients make Adam's step the learning rate itself."""
    hypers = Hypers(learning_rate=0.1, critic_learning_rate=0.2, final_rate_share=0.25)
    state = learner.create_state(KEYS[0], small_task.networks, hypers)
    ones = jax.tree.map(jnp.ones_like, state.params)
    steps = []
    for _ in range(5):
        moved = learner.apply_gradients(state, ones, hypers, num_updates=5)
        change = jax.tree.map(
            lambda new, old: float((old - new).ravel()[0]), moved.params, state.params
        )
        steps.append((change.heads["params"]["table"], change.expert_critics["params"]["table"]))
        state = moved
    shares = np.linspace(1.0, 0.25, 5)
    np.testing.assert_allclose(steps, np.outer(shares, [0.1, 0.2]), rtol=1e-3)


def test_gradient_of_the_heads_is_clipped_by_its_global_norm(small_task):
    """Adam's first moment after one step is a tenth of the gradient that reached it."""
    hypers = Hypers(max_grad_norm=0.5)
    state = learner.create_state(KEYS[0], small_task.networks, hypers)
    ones = jax.tree.map(jnp.ones_like, state.params)
    moved = learner.apply_gradients(state, ones, hypers)
    moments = optax.tree.get(moved.opt_state.inner_states["heads"], "mu").heads
    assert optax.tree.norm(moments) == pytest.approx(0.1 * 0.5, rel=1e-4)


def test_shared_critic_trains_on_both_returns(small_grid, hypers):
    config = TrainConfig(envs_per_expert=8, num_updates=3, critic="shared")
    state, metrics = jax.jit(make_train(config, small_grid))(KEYS[0], hypers)
    assert state.params.observer_critic is None
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(metrics))


@pytest.mark.parametrize("env", ["CartPole-v1", "FrozenLake-misc"])
def test_mlp_heads_train_on_gymnax_environments(env, hypers):
    config = TrainConfig(env=env, head="mlp", hidden_sizes=(8,), envs_per_expert=4, num_updates=2)
    _, metrics = jax.jit(make_train(config))(KEYS[0], hypers)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(metrics))


def test_posterior_observer_needs_a_finite_mdp():
    config = TrainConfig(env="CartPole-v1", head="mlp", observer="posterior")
    with pytest.raises(SettingError, match=r"needs an environment with a finite MDP.*CartPole-v1"):
        make_train(config)


def test_package_offers_the_stable_names():
    for name in ("make_train", "TrainConfig", "Hypers", "ape_update", "make_task", "update"):
        assert callable(getattr(ape_jax, name))
    assert callable(ape_jax.envs.GridWorld)


def test_state_is_a_pytree_with_static_networks(small_task, hypers):
    state = learner.create_state(KEYS[0], small_task.networks, hypers)
    doubled = jax.tree.map(lambda x: x, state)
    assert doubled.networks is small_task.networks
    assert dataclasses.replace(small_task.networks) == small_task.networks


def test_make_task_takes_an_environment_that_is_not_registered(small_grid):
    task = make_task(
        TrainConfig(), small_grid, small_grid.default_params.replace(max_steps_in_episode=4)
    )
    assert task.num_steps == task.mdp.horizon == 4
