import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ape_jax.core import distributions
from ape_jax.core.distributions import (
    Categorical,
    CumulativeCategorical,
    Gaussian,
    GaussianMixture,
)

EXPERTS = Gaussian(
    jnp.array([[-1.0, 0.0], [2.0, 0.5]]), jnp.log(jnp.array([[0.5, 1.0], [1.0, 2.0]]))
)
LOG_WEIGHTS = jnp.log(jnp.array([0.3, 0.7]))


def uniforms(count, size):
    return jax.random.uniform(jax.random.key(0), (count, size))


def test_gaussian_is_the_normal_distribution():
    one = jax.tree.map(lambda x: x[1], EXPERTS)
    normal = stats.norm(np.asarray(one.mean), np.exp(one.log_std))
    action = jnp.array([0.3, -0.8])
    assert float(one.log_prob(action)) == pytest.approx(normal.logpdf(action).sum(), rel=1e-5)
    assert float(one.entropy()) == pytest.approx(normal.entropy().sum(), rel=1e-5)
    samples = np.asarray(jax.vmap(one.sample)(uniforms(4000, 3)))
    for dimension in range(2):
        marginal = stats.norm(float(one.mean[dimension]), float(jnp.exp(one.log_std[dimension])))
        assert stats.kstest(samples[:, dimension], marginal.cdf).pvalue > 1e-3


def test_gaussian_tempered_is_its_power_normalised():
    one = jax.tree.map(lambda x: x[0], EXPERTS)
    cold = one.temper(0.25)
    a, b = jnp.array([0.3, -0.8]), jnp.array([-1.4, 0.2])
    ratio = (one.log_prob(a) - one.log_prob(b)) / 0.25
    assert float(cold.log_prob(a) - cold.log_prob(b)) == pytest.approx(float(ratio), rel=1e-4)
    np.testing.assert_allclose(
        jax.vmap(one.temper(0.0).sample)(uniforms(9, 3)), [one.mean] * 9, atol=1e-4
    )


def test_pooled_gaussian_has_the_moments_of_the_mixture():
    pooled = EXPERTS.pool(LOG_WEIGHTS)
    mixture = EXPERTS.mix(LOG_WEIGHTS)
    samples = np.asarray(jax.vmap(mixture.sample)(uniforms(40_000, 3)))
    np.testing.assert_allclose(pooled.mean, samples.mean(axis=0), atol=0.05)
    np.testing.assert_allclose(jnp.exp(pooled.log_std), samples.std(axis=0), rtol=0.02)


def test_mixture_of_one_component_is_a_gaussian():
    one = jax.tree.map(lambda x: x[:1], EXPERTS)
    mixture = GaussianMixture(jnp.zeros(1), *one)
    action = jnp.array([0.3, -0.8])
    expected = jax.tree.map(lambda x: x[0], one).log_prob(action)
    assert float(mixture.log_prob(action)) == pytest.approx(float(expected), rel=1e-5)


def test_mixture_at_temperature_zero_is_the_heaviest_centre():
    mixture = GaussianMixture(LOG_WEIGHTS, *EXPERTS).temper(0.0)
    actions = jax.vmap(mixture.sample)(uniforms(20, 3))
    np.testing.assert_allclose(actions, np.tile([2.0, 0.5], (20, 1)), atol=1e-4)


def test_categorical_pools_to_the_mixture_of_the_paper():
    probs = jnp.array([[0.9, 0.1], [0.2, 0.8]])
    pooled = Categorical(jnp.log(probs)).pool(LOG_WEIGHTS)
    np.testing.assert_allclose(jnp.exp(pooled.log_probs), [0.41, 0.59], rtol=1e-5)
    assert float(pooled.log_prob(jnp.int32(1))) == pytest.approx(np.log(0.59), rel=1e-5)
    greedy = pooled.temper(0.0)
    assert np.all(np.asarray(jax.vmap(greedy.sample)(uniforms(50, 1))) == 1)


def test_a_point_is_always_the_same_action():
    action = jnp.array([0.1, -0.2])
    samples = jax.vmap(distributions.point(action).sample)(uniforms(10, 3))
    np.testing.assert_array_equal(samples, np.tile(action, (10, 1)))


def test_sample_has_the_frequencies_of_the_policy():
    """Every draw of a fine grid of uniforms: frequencies are exact to the width of the grid."""
    probs = jnp.array([0.5, 0.0, 0.2, 0.3])
    grid = (jnp.arange(10_000)[:, None] + 0.5) / 10_000
    actions = jax.vmap(Categorical(jnp.log(probs)).sample)(grid)
    frequencies = np.bincount(actions, minlength=4) / 10_000
    np.testing.assert_allclose(frequencies, probs, atol=2e-4)


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2**-24])
@pytest.mark.parametrize("probs", [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [1 / 3] * 3])
def test_sample_never_takes_an_action_of_probability_zero(uniform, probs):
    categorical = Categorical(jnp.log(jnp.array(probs)))
    assert probs[int(categorical.sample(jnp.array([uniform])))] > 0


def test_sample_stays_in_range_when_the_sum_falls_short_of_one():
    sampler = CumulativeCategorical(jnp.array([0.3, 0.6, 0.9]))
    assert int(sampler.sample(jnp.array([0.9999]))) == 2


def test_entropy_of_a_policy_that_never_takes_an_action_is_finite():
    assert Categorical(jnp.array([0.0, -jnp.inf])).entropy() == 0.0


def test_entropy_of_a_uniform_policy_is_log_of_the_number_of_actions():
    uniform = Categorical(jnp.full(5, -jnp.log(5.0)))
    assert uniform.entropy() == pytest.approx(np.log(5), rel=1e-6)


@pytest.mark.parametrize("edge", [0.0, 1.0 - 2.0**-24])
def test_normal_numbers_are_finite_at_both_ends(edge):
    one = Gaussian(jnp.zeros(1), jnp.zeros(1))
    assert np.isfinite(float(one.sample(jnp.array([edge]))[0]))


def test_log_probability_is_that_of_the_action_and_its_gradient_needs_no_scatter():
    log_probs = jnp.log(jnp.array([[0.5, 0.0, 0.2, 0.3], [1.0, 0.0, 0.0, 0.0]]))
    for action in range(4):
        found = Categorical(log_probs).log_prob(jnp.int32(action))
        np.testing.assert_array_equal(found, log_probs[:, action])
        gradient = jax.grad(lambda x, a=action: Categorical(x).log_prob(jnp.int32(a)))(log_probs[0])
        np.testing.assert_array_equal(gradient, np.eye(4)[action])
    program = jax.make_jaxpr(jax.grad(lambda x: Categorical(x).log_prob(jnp.int32(1))))
    assert "scatter" not in str(program(log_probs[0]))
