import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ape_jax.core import mixture

logits = st.lists(st.floats(-30, 30, width=32), min_size=4, max_size=4)


def log_probs(rows):
    return jax.nn.log_softmax(jnp.array(rows, jnp.float32))


@settings(max_examples=50, deadline=None)
@given(
    st.tuples(logits, logits, logits), st.lists(st.floats(-5, 5, width=32), min_size=3, max_size=3)
)
def test_mixture_equals_the_weighted_average_of_probabilities(rows, weight_logits):
    weights = jax.nn.softmax(jnp.array(weight_logits, jnp.float32))
    ours = mixture.mixture_log_probs(log_probs(rows), jnp.log(weights))
    expected = np.asarray(weights, np.float64) @ np.exp(np.asarray(log_probs(rows), np.float64))
    np.testing.assert_allclose(np.exp(ours), expected, rtol=1e-4, atol=1e-7)


def test_mixture_of_one_expert_is_that_expert():
    policy = log_probs([[1.0, -2.0, 0.5]])
    np.testing.assert_allclose(
        mixture.mixture_log_probs(policy, jnp.zeros(1)), policy[0], rtol=1e-6
    )


def test_mixture_ignores_an_expert_of_weight_zero():
    policies = log_probs([[1.0, -2.0, 0.5], [9.0, 0.0, 0.0]])
    ours = mixture.mixture_log_probs(policies, jnp.array([0.0, -jnp.inf]))
    np.testing.assert_allclose(ours, policies[0], rtol=1e-6)


@pytest.mark.parametrize(
    "policies",
    [
        [[0.0, -jnp.inf], [0.0, -jnp.inf]],
        [[0.0, -jnp.inf], [-jnp.inf, 0.0]],
        [[0.0, -1e4], [0.0, -2e4]],
    ],
)
def test_mixture_stays_finite_in_value_and_gradient_where_probabilities_vanish(policies):
    policies = jnp.array(policies)
    weights = mixture.uniform_log_weights(2)
    for temperature in (1.0, 0.1, 0.0):
        value, gradient = jax.value_and_grad(
            lambda p, t=temperature: mixture.observer_log_probs(p, weights, t)[1]
        )(policies)
        assert np.isfinite(value)
        assert np.all(np.isfinite(gradient))


def test_mixture_gradient_flows_through_every_head():
    policies = log_probs([[0.3, 0.1, -0.5], [-1.0, 0.4, 0.2]])
    weights = jnp.log(jnp.array([0.25, 0.75]))
    gradient = jax.grad(lambda p: mixture.mixture_log_probs(p, weights)[0])(policies)
    # d log Σ w π / d log π_c = w_c π_c / Σ w π: each head's responsibility.
    joint = np.exp(np.asarray(policies[:, 0])) * np.array([0.25, 0.75])
    np.testing.assert_allclose(gradient[:, 0], joint / joint.sum(), rtol=1e-5)
    np.testing.assert_array_equal(gradient[:, 1:], 0.0)


@settings(max_examples=50, deadline=None)
@given(logits, st.floats(0.01, 5))
def test_temper_raises_probabilities_to_the_inverse_temperature(row, temperature):
    policy = log_probs(row)
    powered = np.asarray(policy, np.float64) / temperature
    expected = np.exp(powered - powered.max())
    ours = np.exp(mixture.temper(policy, temperature))
    np.testing.assert_allclose(ours, expected / expected.sum(), rtol=2e-3, atol=1e-6)


def test_temper_at_one_is_the_identity():
    policy = log_probs([0.4, -1.0, 2.0])
    np.testing.assert_allclose(mixture.temper(policy, 1.0), policy, rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 1e-30, 1e-6])
def test_temper_towards_zero_is_greedy_and_shares_ties(temperature):
    ours = jnp.exp(mixture.temper(jnp.log(jnp.array([0.4, 0.4, 0.2])), temperature))
    np.testing.assert_allclose(ours, [0.5, 0.5, 0.0], atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-9])
def test_posterior_weights_follow_bayes_rule_also_in_rare_states(scale):
    occupancies = scale * jnp.array([3.0, 1.0, 0.0])
    ours = jnp.exp(mixture.posterior_log_weights(occupancies))
    np.testing.assert_allclose(ours, [0.75, 0.25, 0.0], atol=1e-6)


def test_temper_has_finite_gradients_at_zero_even_in_a_tie():
    tied = jnp.log(jnp.array([0.4, 0.4, 0.2]))
    for argument in (0, 1):
        gradient = jax.grad(lambda p, t: mixture.temper(p, t)[0], argument)(tied, 0.0)
        assert np.all(np.isfinite(gradient))


def test_posterior_weights_are_uniform_and_finite_where_nobody_comes():
    value, gradient = jax.value_and_grad(lambda d: mixture.posterior_log_weights(d)[0])(
        jnp.zeros(4)
    )
    assert value == pytest.approx(np.log(0.25), rel=1e-5)
    assert np.all(np.isfinite(gradient))
