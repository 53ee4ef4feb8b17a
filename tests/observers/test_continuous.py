"""Clones of continuous actions on two modes, as two experts pass an obstacle left and right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.observers import MeanAction, MixtureDensityNetwork

STD = 0.1


@pytest.fixture(scope="module")
def two_modes():
    """Observation x in [-1, 1]; the action is near (x, 1) or (x, −1), as the expert has it."""
    keys = jax.random.split(jax.random.key(0), 3)
    num_steps, length = 8_000, 10
    episode = jnp.arange(num_steps) // length
    side = jnp.where(jax.random.bernoulli(keys[0], 0.3, (num_steps // length,)), -1.0, 1.0)[episode]
    x = jax.random.uniform(keys[1], (num_steps, 1), minval=-1.0)
    centre = jnp.concatenate([x, side[:, None]], axis=1)
    end = jnp.arange(num_steps) % length == length - 1
    return Demonstrations(
        observation=x,
        action=centre + STD * jax.random.normal(keys[2], centre.shape),
        reward=jnp.zeros(num_steps),
        terminated=end,
        truncated=jnp.zeros(num_steps, bool),
        episode=episode,
    )


def test_mean_action_falls_between_the_modes(two_modes):
    clone = jax.jit(MeanAction(num_updates=400).fit)(jax.random.key(1), two_modes)
    for x in (-0.5, 0.5):
        np.testing.assert_allclose(clone.distribution(jnp.array([x])).mean, [x, 0.4], atol=0.12)


@pytest.fixture(scope="module")
def mixture(two_modes):
    return jax.jit(MixtureDensityNetwork(num_components=2, num_updates=800).fit)(
        jax.random.key(1), two_modes
    )


def test_gaussian_mixture_keeps_both_modes(mixture):
    gaussians = mixture.distribution(jnp.array([0.3]))
    order = np.argsort(gaussians.means[:, 1])
    np.testing.assert_allclose(gaussians.means[order], [[0.3, -1], [0.3, 1]], atol=0.1)
    np.testing.assert_allclose(jnp.exp(gaussians.log_weights)[order], [0.3, 0.7], atol=0.1)
    np.testing.assert_allclose(jnp.exp(gaussians.log_stds), STD, rtol=0.3)


def test_gaussian_mixture_deployed_greedily_takes_the_commoner_side(mixture):
    greedy = mixture.distribution(jnp.array([0.0])).temper(0.0)
    action = greedy.sample(jnp.full(3, 0.5))
    np.testing.assert_allclose(action, [0.0, 1.0], atol=0.1)


def test_gaussian_mixture_samples_both_sides_in_their_shares(mixture):
    uniforms = jax.random.uniform(jax.random.key(4), (2_000, 3))
    actions = jax.vmap(mixture.distribution(jnp.array([0.0])).sample)(uniforms)
    assert float(jnp.mean(actions[:, 1] > 0)) == pytest.approx(0.7, abs=0.1)
    assert float(jnp.mean(jnp.abs(jnp.abs(actions[:, 1]) - 1.0))) < 2 * STD


def test_density_of_one_component_is_the_normal_one(mixture):
    from scipy.stats import norm

    gaussians = mixture.distribution(jnp.array([0.0]))
    one = jax.tree.map(lambda x: x[:1], gaussians)._replace(log_weights=jnp.zeros(1))
    action = jnp.array([0.2, 0.7])
    expected = norm.logpdf(action, one.means[0], np.exp(one.log_stds[0])).sum()
    assert float(one.log_prob(action)) == pytest.approx(expected, rel=1e-4)


def test_one_component_matches_the_moments(two_modes):
    """The moment-matched Gaussian puts its centre where nobody acts."""
    observer = MixtureDensityNetwork(num_components=1, num_updates=400)
    gaussians = jax.jit(observer.fit)(jax.random.key(1), two_modes).distribution(jnp.array([0.0]))
    assert float(gaussians.means[0, 1]) == pytest.approx(0.4, abs=0.15)
    assert float(jnp.exp(gaussians.log_stds[0, 1])) == pytest.approx(0.92, abs=0.15)
