"""The categorical distribution, in the two forms that a rollout and a loss need."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ape_jax.core.mixture import LOG_FLOOR


def cumulative_probs(log_probs: Float[Array, " A"]) -> Float[Array, " A"]:
    """P(action ≤ a): what ``sample`` needs, made once where a policy acts many times."""
    return jnp.cumsum(jnp.exp(log_probs))


def sample(cumulative: Float[Array, " A"], uniform: Float[Array, ""]) -> Int[Array, ""]:
    """Draw an action by inverting the cumulative distribution.

    One uniform number a draw instead of the A Gumbel numbers of ``jax.random.categorical``.
    Scaling by the last entry keeps the draw in range when the sum is not quite one.

    Args:
      cumulative: from ``cumulative_probs``.
      uniform: a number from [0, 1).

    Returns:
      The action, an int32 in [0, A).
    """
    return jnp.sum(cumulative[:-1] <= uniform * cumulative[-1], dtype=jnp.int32)


def entropy(log_probs: Float[Array, " A"]) -> Float[Array, ""]:
    """−Σ_a π(a) log π(a), in nats."""
    terms = jnp.exp(log_probs) * jnp.maximum(log_probs, LOG_FLOOR)
    return -jnp.sum(terms)
