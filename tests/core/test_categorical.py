import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ape_jax.core import categorical


def test_sample_has_the_frequencies_of_the_policy():
    """Every draw of a fine grid of uniforms: frequencies are exact to the grid's width."""
    probs = jnp.array([0.5, 0.0, 0.2, 0.3])
    uniforms = (jnp.arange(10_000) + 0.5) / 10_000
    cumulative = categorical.cumulative_probs(jnp.log(probs))
    actions = jax.vmap(categorical.sample, (None, 0))(cumulative, uniforms)
    frequencies = np.bincount(actions, minlength=4) / 10_000
    np.testing.assert_allclose(frequencies, probs, atol=2e-4)


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2**-24])
@pytest.mark.parametrize("probs", [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [1 / 3] * 3])
def test_sample_never_takes_an_action_of_probability_zero(uniform, probs):
    cumulative = categorical.cumulative_probs(jnp.log(jnp.array(probs)))
    action = int(categorical.sample(cumulative, jnp.float32(uniform)))
    assert probs[action] > 0


def test_sample_stays_in_range_when_the_sum_falls_short_of_one():
    assert int(categorical.sample(jnp.array([0.3, 0.6, 0.9]), jnp.float32(0.9999))) == 2


def test_entropy_of_a_policy_that_never_takes_an_action_is_finite():
    log_probs = jnp.array([0.0, -jnp.inf])
    assert categorical.entropy(log_probs) == 0.0


def test_entropy_of_a_uniform_policy_is_log_of_the_number_of_actions():
    assert categorical.entropy(jnp.full(5, -jnp.log(5.0))) == pytest.approx(np.log(5), rel=1e-6)
