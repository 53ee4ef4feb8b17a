import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces

from ape_jax.config import PGConfig, PPOConfig
from ape_jax.core import platform
from ape_jax.networks import make_networks
from ape_jax.networks.modules import product
from ape_jax.types import SettingError

FINITE, BOX, ACTIONS = spaces.Discrete(9), spaces.Box(-1.0, 1.0, (4,)), spaces.Discrete(5)


@pytest.mark.parametrize(
    ("config", "space", "observation"),
    [
        (PGConfig(num_experts=3), FINITE, jnp.int32(4)),
        (PGConfig(num_experts=3, head="mlp"), FINITE, jnp.int32(4)),
        (PGConfig(num_experts=3, head="mlp", hidden_sizes=(8, 6)), BOX, jnp.ones(4)),
        (PGConfig(num_experts=3, head="mlp", activation="relu"), BOX, jnp.ones(4)),
    ],
)
def test_stacked_heads_are_normalised_and_start_apart(config, space, observation):
    networks = make_networks(config, space, ACTIONS)
    params = jax.jit(networks.init)(jax.random.key(0))
    log_probs = jax.jit(networks.expert_log_probs)(params.heads, observation)
    assert log_probs.shape == (3, 5)
    np.testing.assert_allclose(jnp.sum(jnp.exp(log_probs), axis=-1), 1.0, rtol=1e-5)
    assert np.ptp(np.asarray(log_probs), axis=0).max() > 0.1
    one = networks.log_probs(jax.tree.map(lambda x: x[1], params.heads), observation)
    np.testing.assert_allclose(log_probs[1], one, rtol=1e-5)


@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_observer_baseline_is_its_own_or_every_experts(critic):
    networks = make_networks(PGConfig(num_experts=3, critic=critic), FINITE, ACTIONS)
    params = jax.jit(networks.init)(jax.random.key(0))
    assert (params.observer_critic is None) == (critic == "shared")
    values = networks.observer_values(params, jnp.int32(2))
    assert values.shape == ((3,) if critic == "shared" else (1,))


def test_relu_head_is_the_network_of_the_original_listing():
    """One hidden layer of 64, ReLU, softmax, with biases, recomputed in NumPy."""
    networks = make_networks(PGConfig(head="mlp", activation="relu"), BOX, ACTIONS)
    head = networks.head.init(jax.random.key(0), jnp.zeros(4))
    layers = jax.tree.map(np.asarray, head["params"])
    x = np.array([0.5, -1.0, 2.0, 0.1], np.float32)
    hidden = np.maximum(x @ layers["Dense_0"]["kernel"] + layers["Dense_0"]["bias"], 0)
    logits = hidden @ layers["Dense_1"]["kernel"] + layers["Dense_1"]["bias"]
    expected = np.exp(logits) / np.exp(logits).sum()
    assert hidden.shape == (64,)
    np.testing.assert_allclose(
        jnp.exp(networks.log_probs(head, jnp.asarray(x))), expected, rtol=1e-4
    )


def test_tabulate_equals_the_function_it_replaces():
    networks = make_networks(PGConfig(head="mlp"), FINITE, ACTIONS)
    head = jax.tree.map(lambda x: x[0], jax.jit(networks.init)(jax.random.key(0)).heads)

    def plain(state):
        return networks.log_probs(head, state)

    @jax.jit
    def both(states):
        return jax.vmap(networks.tabulate(plain))(states), jax.lax.map(plain, states)

    looked_up, computed = both(jnp.arange(9))
    np.testing.assert_allclose(looked_up, computed, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "observation_space", "action_space", "message"),
    [
        (PGConfig(), BOX, ACTIONS, "head='tabular' needs .* states.*Use head='mlp'"),
        (PGConfig(head="mlp"), BOX, BOX, "head='mlp' needs a discrete action space"),
        (PGConfig(head="mlp"), spaces.Dict({}), ACTIONS, "Discrete or Box observation"),
    ],
)
def test_make_networks_rejects_spaces_that_do_not_fit(
    config, observation_space, action_space, message
):
    with pytest.raises(SettingError, match=message):
        make_networks(config, observation_space, action_space)


IMAGES, CUBES = spaces.Box(0.0, 1.0, (4, 5, 2)), spaces.Box(-1.0, 1.0, (2, 3))
ACTION = spaces.Box(-1.0, 1.0, (2,))


@pytest.mark.parametrize(
    ("config", "space", "action_space"),
    [
        (PPOConfig(head="tabular"), FINITE, ACTIONS),
        (PPOConfig(head="mlp"), FINITE, ACTIONS),
        (PPOConfig(head="mlp", normalize_observations=True), CUBES, ACTIONS),
        (PPOConfig(head="conv"), IMAGES, ACTIONS),
        (PPOConfig(head="gaussian"), CUBES, ACTION),
        (PPOConfig(head="gaussian", std="state"), BOX, ACTION),
    ],
    ids=lambda x: getattr(x, "head", None),
)
def test_a_batch_of_observations_gives_what_each_gives_alone(config, space, action_space):
    networks = make_networks(config, space, action_space)
    params = networks.init(jax.random.key(0))
    head, critic = jax.tree.map(lambda x: x[0], (params.heads, params.expert_critics))
    observations = jax.vmap(space.sample)(jax.random.split(jax.random.key(1), 6))
    observations = observations.reshape(2, 3, *space.shape)
    for function, network in ((networks.distribution, head), (networks.value, critic)):
        together = function(network, observations)
        alone = jax.vmap(jax.vmap(function, (None, 0)), (None, 0))(network, observations)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), together, alone)


@pytest.mark.parametrize("sizes", [(3, 7), (7, 3)])
def test_product_has_the_gradient_of_a_product_in_every_form(sizes):
    inputs = jax.random.normal(jax.random.key(0), (2, 5, sizes[0]))
    kernel = jax.random.normal(jax.random.key(1), sizes)
    weights = jax.random.normal(jax.random.key(2), (2, 5, sizes[1]))
    expected = jax.grad(lambda x, w: jnp.sum(weights * (x @ w)), (0, 1))(inputs, kernel)
    for row_by_row in (False, True):
        with platform.tracing_for(platform.FORMS["cpu"]._replace(row_by_row=row_by_row)):
            found = jax.grad(lambda x, w: jnp.sum(weights * product(x, w)), (0, 1))(inputs, kernel)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), found, expected)


class OneHot(nn.Module):
    """A head of one's own, which takes one state."""

    @nn.compact
    def __call__(self, state):
        return nn.Dense(5)(jax.nn.one_hot(state, 9))


def test_a_module_of_your_own_is_evaluated_in_every_state(small_task):
    networks = dataclasses.replace(small_task.networks, head=OneHot())
    heads = networks.init(jax.random.key(0)).heads
    kernels = heads["params"]["Dense_0"]["kernel"]  # [E, S, A], and the biases are zero.
    found = networks.tabulate_experts(heads)
    np.testing.assert_allclose(found, jax.nn.log_softmax(kernels), rtol=1e-5)
