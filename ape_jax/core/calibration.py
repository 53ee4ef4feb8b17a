"""Whether a classifier is as often right as it says."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

NUM_BINS = 10
"""Bins of the confidence."""


def expected_calibration_error(
    log_probs: Float[Array, "N E"], labels: Int[Array, " N"], weights: Float[Array, " N"]
) -> Float[Array, ""]:
    """Mean distance between confidence and accuracy (Guo et al., arXiv 1706.04599, Eq. 3).

        Σ_b n_b / N · |accuracy_b − confidence_b|,    b one of ten equal bins of the confidence

    Args:
      log_probs: of every class, for each example.
      labels: the true classes.
      weights: how much each example counts; one of n_b is its share.

    Returns:
      Between 0 and 1.
    """
    confidence = jnp.exp(jnp.max(log_probs, axis=-1))
    right = (jnp.argmax(log_probs, axis=-1) == labels).astype(jnp.float32)
    bins = jnp.clip((confidence * NUM_BINS).astype(jnp.int32), 0, NUM_BINS - 1)
    sums = jax.ops.segment_sum(weights * (right - confidence), bins, num_segments=NUM_BINS)
    return jnp.sum(jnp.abs(sums)) / jnp.sum(weights)
