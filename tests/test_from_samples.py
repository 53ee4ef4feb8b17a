import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces

from ape_jax import (
    PGConfig,
    PGHypers,
    Samples,
    SettingError,
    create_state,
    make_networks,
    update_from_samples,
)


@pytest.fixture(scope="module")
def networks():
    config = PGConfig(num_experts=3, head="mlp", activation="relu")
    return make_networks(config, spaces.Box(-jnp.inf, jnp.inf, (10,)), spaces.Discrete(5))


def samples(key, size=32):
    keys = jax.random.split(key, 7)

    def one(keys, expert):
        return Samples(
            observation=jax.random.normal(keys[0], (size, 10)),
            action=jax.random.randint(keys[1], (size,), 0, 5),
            returns=jax.random.normal(keys[2], (size,)),
            expert=expert,
        )

    return one(keys[:3], jax.random.randint(keys[3], (size,), 0, 3)), one(keys[4:], None)


def test_losses_equal_the_equations_sample_by_sample(networks):
    hypers = PGHypers(beta=0.5)
    state = create_state(jax.random.key(0), networks, hypers)
    experts, observers = samples(jax.random.key(1))
    _, losses = update_from_samples(state, experts, observers, hypers)

    def at(function, params, observations):
        found = jax.vmap(function, (None, 0))(params, observations)
        return np.asarray(found, np.float64)

    def value_of_each(critics, observation):
        return jax.vmap(networks.value, (0, None))(critics, observation)

    policy1 = policy2 = value1 = value2 = 0.0
    log_probs = at(networks.expert_log_probs, state.params.heads, experts.observation)
    values = at(value_of_each, state.params.expert_critics, experts.observation)
    columns = map(np.asarray, (experts.action, experts.returns, experts.expert))
    for i, (a, r, c) in enumerate(zip(*columns, strict=True)):
        v = values[i, c]
        policy1 -= log_probs[i, c, a] * (r - v) / 32
        value1 += 0.5 * (v - r) ** 2 / 32
    log_probs = at(networks.expert_log_probs, state.params.heads, observers.observation)
    values = at(networks.value, state.params.observer_critic, observers.observation)
    columns = map(np.asarray, (observers.action, observers.returns))
    for i, (a, r) in enumerate(zip(*columns, strict=True)):
        policy2 -= np.log(np.exp(log_probs[i, :, a]).mean()) * (-0.5 * r - values[i]) / 32
        value2 += 0.5 * (values[i] + 0.5 * r) ** 2 / 32
    np.testing.assert_allclose(losses, [policy1, value1, policy2, value2], rtol=1e-3, atol=1e-4)


def test_update_moves_every_head_through_the_observers_samples(networks):
    """Only expert 0 demonstrates, yet the mixture's gradient reaches all three heads."""
    hypers = PGHypers(beta=0.5)
    state = create_state(jax.random.key(0), networks, hypers)
    experts, observers = samples(jax.random.key(1))
    moved, _ = update_from_samples(
        state, experts._replace(expert=jnp.zeros(32, int)), observers, hypers
    )
    change = jax.tree.map(
        lambda new, old: jnp.abs(new - old), moved.params.heads, state.params.heads
    )
    largest = jax.tree.map(lambda x: jnp.max(x.reshape(3, -1), axis=1), change)
    assert all(np.all(np.asarray(x) > 0) for x in jax.tree.leaves(largest))


def test_repeated_updates_fit_returns_that_can_be_fitted(networks):
    hypers = PGHypers(beta=0.5, learning_rate=1e-3, critic_learning_rate=1e-2)
    state = create_state(jax.random.key(0), networks, hypers)
    experts, observers = samples(jax.random.key(1))
    _, first = update_from_samples(state, experts, observers, hypers)
    for _ in range(200):
        state, losses = update_from_samples(state, experts, observers, hypers)
    assert losses.expert_value < 0.3 * first.expert_value
    assert losses.observer_value < 0.3 * first.observer_value


def test_update_works_inside_scan(networks):
    hypers = PGHypers()
    state = create_state(jax.random.key(0), networks, hypers)

    def step(state, key):
        return update_from_samples(state, *samples(key), hypers)

    _, losses = jax.lax.scan(step, state, jax.random.split(jax.random.key(1), 5))
    assert losses.expert_policy.shape == (5,)


@pytest.mark.parametrize(
    ("which", "change", "message"),
    [
        ("expert", {"observation": jnp.zeros((32, 9))}, r"observation must have shape \(32, 10\)"),
        ("expert", {"returns": jnp.zeros(31)}, r"expert_samples.returns must have shape \(32,\)"),
        (
            "expert",
            {"action": jnp.zeros(32)},
            "expert_samples.action must be integers",
        ),
        ("expert", {"action": jnp.zeros((), int)}, "one action per sample, and at least one"),
        ("expert", {"action": jnp.zeros(0, int)}, "one action per sample, and at least one"),
        ("expert", {"expert": None}, "expert_samples.expert must hold the index"),
        ("observer", {"expert": jnp.zeros(32, int)}, "observer_samples.expert must be None"),
    ],
)
def test_update_rejects_samples_that_do_not_fit(networks, which, change, message):
    hypers = PGHypers()
    state = create_state(jax.random.key(0), networks, hypers)
    experts, observers = samples(jax.random.key(1))
    if which == "expert":
        experts = experts._replace(**change)
    else:
        observers = observers._replace(**change)
    with pytest.raises(SettingError, match=message):
        update_from_samples(state, experts, observers, hypers)


def test_update_leaves_multipliers_and_classifier_alone():
    """Neither has a part in a batch; a state that carries them can be updated all the same."""
    config = PGConfig(num_experts=3, head="mlp", activation="relu", observer="learned")
    spaces_ = spaces.Box(-jnp.inf, jnp.inf, (10,)), spaces.Discrete(5)
    hypers = PGHypers(min_return=0.0)
    state = create_state(jax.random.key(0), make_networks(config, *spaces_), hypers)
    moved, _ = update_from_samples(state, *samples(jax.random.key(1)), hypers)
    np.testing.assert_array_equal(moved.multipliers, state.multipliers)
    jax.tree.map(np.testing.assert_array_equal, moved.params.classifier, state.params.classifier)
