import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vectors
from gymnax.environments import spaces

from ape_jax.config import PPOConfig
from ape_jax.core.policies import greedy, tabulate
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.networks import make_networks
from ape_jax.observers.behaviour_cloning import BehaviourCloning
from ape_jax.observers.implicit_q import ImplicitQ


@pytest.fixture(scope="module")
def random_steps():
    """Every action in every cell, and no good episode among them."""
    return vectors.vectors([vectors.UNIFORM])


def test_pieces_of_bad_episodes_make_an_optimal_policy(random_steps):
    policy = vectors.fit(ImplicitQ(vectors.NETWORKS, num_updates=2000), random_steps)
    clone = vectors.fit(BehaviourCloning(vectors.NETWORKS, num_updates=200), random_steps)
    best = vectors.exact_return(vectors.OPTIMAL)
    assert vectors.exact_return(vectors.table(clone)) < best - 10
    assert vectors.exact_return(vectors.table(policy)) > best - 1
    assert vectors.exact_return(vectors.table(policy, 0.0)) == pytest.approx(best, abs=0.1)


def test_where_one_expert_never_tries_anything_else_the_policy_is_that_expert():
    """It goes right to the wall and waits: values cannot say what was not demonstrated."""
    expert = jnp.zeros_like(vectors.UNIFORM).at[:, 3].set(1.0)
    policy = vectors.fit(ImplicitQ(vectors.NETWORKS, num_updates=600), vectors.vectors([expert]))
    np.testing.assert_allclose(vectors.table(policy)[1:], expert[1:], atol=0.05)


def test_states_may_be_numbers():
    """A table learns the same as a network of vectors."""
    shown = vectors.states([vectors.UNIFORM])
    networks = dataclasses.replace(vectors.TASK.networks, num_experts=1)
    policy = vectors.fit(ImplicitQ(networks, num_updates=2000, learning_rate=1e-2), shown)
    probs = jnp.exp(tabulate(greedy(policy), len(vectors.CELLS)).table.log_probs)
    best = vectors.exact_return(vectors.OPTIMAL)
    assert vectors.exact_return(probs) == pytest.approx(best, abs=0.3)


def test_continuous_actions_move_to_where_rewards_are_high():
    """The reward is −(action − x)², and actions are drawn evenly from −2 to 2."""
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.uniform(keys[0], (4_000, 1), minval=-1.0)
    action = jax.random.uniform(keys[1], (4_000, 1), minval=-2.0, maxval=2.0)
    ends = jnp.ones(4_000, bool)
    shown = Demonstrations(x, action, -jnp.square(action - x)[:, 0], ends, ~ends, jnp.arange(4_000))
    config = PPOConfig(head="gaussian", hidden_sizes=(32, 32), num_experts=1, std="state")
    spaces_ = spaces.Box(-1.0, 1.0, (1,)), spaces.Box(-2.0, 2.0, (1,))
    policy = vectors.fit(ImplicitQ(make_networks(config, *spaces_), num_updates=2000), shown)
    points = jnp.linspace(-0.9, 0.9, 7)[:, None]
    np.testing.assert_allclose(jax.vmap(policy.distribution)(points).mean, points, atol=0.25)


def test_images_are_accepted():
    """Brightness of the image tells the better of two actions."""
    keys = jax.random.split(jax.random.key(0), 2)
    bright = jax.random.bernoulli(keys[0], shape=(512,)).astype(jnp.int32)
    image = jnp.broadcast_to(bright[:, None, None, None].astype(jnp.float32), (512, 4, 4, 1))
    action = jax.random.randint(keys[1], (512,), 0, 2)
    ends = jnp.ones(512, bool)
    reward = (action == bright).astype(jnp.float32)
    shown = Demonstrations(image, action, reward, ends, ~ends, jnp.arange(512))
    config = PPOConfig(head="conv", hidden_sizes=(16,), num_experts=1)
    networks = make_networks(config, spaces.Box(0.0, 1.0, (4, 4, 1)), spaces.Discrete(2))
    policy = vectors.fit(ImplicitQ(networks, num_updates=200), shown)
    for value in (0, 1):
        probs = jnp.exp(policy.distribution(jnp.full((4, 4, 1), float(value))).log_probs)
        assert float(probs[value]) > 0.8


def test_little_data_gives_a_defined_policy():
    vectors.assert_defined_on_little_data(ImplicitQ(vectors.NETWORKS, num_updates=40))


def test_steps_whose_successor_is_not_known_are_cloned():
    """Nothing is known about values, so the weights of all steps are one."""
    shown = vectors.ODD["one step each and no arrival"]
    shown = shown._replace(action=jnp.full_like(shown.action, 2), reward=-shown.reward)
    policy = vectors.fit(ImplicitQ(vectors.NETWORKS, num_updates=200), shown)
    assert float(policy.distribution(shown.observation[0]).log_prob(jnp.int32(2))) > -0.1
