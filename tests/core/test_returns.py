import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ape_jax.core import platform, returns

FORMS = ("cpu", "gpu")
"""The platforms of both forms: a loop over time, and a parallel scan."""


def loop_returns(rewards, discounts):
    later, out = 0.0, []
    for reward, gamma in zip(rewards[::-1], discounts[::-1], strict=True):
        later = reward + gamma * later
        out.append(later)
    return np.array(out[::-1])


steps = st.lists(
    st.tuples(
        st.floats(-5, 5, width=32),
        st.floats(0, 1, width=32),
        st.booleans(),
        st.booleans(),
        st.floats(-5, 5, width=32),
        st.floats(-5, 5, width=32),
    ),
    min_size=6,
    max_size=6,
)


@settings(max_examples=30, deadline=None)
@given(steps, st.sampled_from(FORMS))
def test_discounted_returns_equal_a_loop(trajectory, name):
    rewards, discounts, *_ = (
        np.array(column, np.float32) for column in zip(*trajectory, strict=True)
    )
    with platform.tracing_for(name):
        ours = returns.discounted_returns(jnp.asarray(rewards), jnp.asarray(discounts))
    np.testing.assert_allclose(ours, loop_returns(rewards, discounts), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FORMS)
def test_discounted_returns_stop_where_the_discount_is_zero(name):
    with platform.tracing_for(name):
        ours = returns.discounted_returns(jnp.ones(4), jnp.array([0.5, 0.0, 0.5, 0.5]))
    np.testing.assert_allclose(ours, [1.5, 1.0, 1.5, 1.0])


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("shape", [(1,), (100,), (100, 3)])
def test_discounted_returns_have_the_gradient_of_a_loop(name, shape):
    """R(t) is linear in rewards: their gradient of Σ c(t) R(t) is a loop forwards.

    By a discount, the gradient is that of the reward of its step, times the return that follows.
    """
    random = np.random.default_rng(0)
    rewards, weights = random.normal(size=(2, *shape))
    discounts = random.uniform(0.5, 1.0, shape) * (random.uniform(size=shape) > 0.1)

    def weighted(rewards, discounts):
        return jnp.sum(weights * returns.discounted_returns(rewards, discounts))

    with platform.tracing_for(name):
        by_rewards, by_discounts = jax.jit(jax.grad(weighted, argnums=(0, 1)))(
            *(jnp.asarray(x, jnp.float32) for x in (rewards, discounts))
        )
    shifted = np.concatenate([np.zeros((1, *shape[1:])), discounts[:-1]])
    expected = loop_returns(weights[::-1], shifted[::-1])[::-1]
    later = np.append(loop_returns(rewards, discounts), np.zeros((1, *shape[1:])), axis=0)[1:]
    np.testing.assert_allclose(by_rewards, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(by_discounts, expected * later, rtol=1e-4, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(steps, st.sampled_from(FORMS))
def test_generalized_advantages_equal_the_sum_of_temporal_differences(trajectory, name):
    """Against the definition: sum of (γλ)^l δ over the steps left in the same episode."""
    rewards, _, terminated, truncated, values, next_values = (
        np.array(column) for column in zip(*trajectory, strict=True)
    )
    gamma, decay = 0.9, 0.7
    expected = []
    for t in range(len(rewards)):
        total, weight = 0.0, 1.0
        for k in range(t, len(rewards)):
            bootstrap = 0.0 if terminated[k] else next_values[k]
            total += weight * (rewards[k] + gamma * bootstrap - values[k])
            if terminated[k] or truncated[k]:
                break
            weight *= gamma * decay
        expected.append(total)
    with platform.tracing_for(name):
        ours = returns.generalized_advantages(
            *(jnp.asarray(x, jnp.float32) for x in (rewards, values, next_values)),
            jnp.asarray(terminated),
            jnp.asarray(truncated),
            gamma,
            decay,
        )
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("terminated", "expected"), [(True, 1.0 - 2.0), (False, 1.0 + 0.9 * 5 - 2.0)]
)
def test_generalized_advantages_bootstrap_only_where_the_episode_would_have_gone_on(
    terminated, expected
):
    ours = returns.generalized_advantages(
        jnp.array([1.0]),
        jnp.array([2.0]),
        jnp.array([5.0]),
        jnp.array([terminated]),
        jnp.array([not terminated]),
        0.9,
        1.0,
    )
    np.testing.assert_allclose(ours, [expected], rtol=1e-6)


def test_generalized_advantages_with_full_traces_are_returns_minus_values():
    rewards, values = jnp.array([1.0, -2.0, 3.0]), jnp.array([0.5, 0.1, -0.3])
    ends = jnp.array([False, False, True])
    ours = returns.generalized_advantages(
        rewards, values, jnp.append(values[1:], 9.0), ends, jnp.zeros(3, bool), 0.9, 1.0
    )
    expected = returns.discounted_returns(rewards, jnp.full(3, 0.9)) - values
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
