"""Running means and variances, a batch at a time, and the calibration of a classifier."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Moments(NamedTuple):
    """Of numbers, or of each entry of vectors [F]."""

    size: Float[Array, ""]
    """How many."""
    mean: Float[Array, "*F"]
    """Their mean."""
    variance: Float[Array, "*F"]
    """Mean squared distance from it."""

    def scale(self) -> Float[Array, "*F"]:
        """One over the standard deviation."""
        return 1.0 / jnp.sqrt(self.variance + 1e-8)


def standard(shape: tuple[int, ...]) -> Moments:
    """Mean zero and variance one, with the weight of hardly anything."""
    return Moments(jnp.float32(1e-4), jnp.zeros(shape), jnp.ones(shape))


def merge(moments: Moments, batch: Float[Array, "N *F"]) -> Moments:
    """The moments of what was seen and of a batch together (Chan et al., 1979)."""
    size = moments.size + batch.shape[0]
    apart = jnp.mean(batch, axis=0) - moments.mean
    share = batch.shape[0] / size
    variance = (1.0 - share) * moments.variance + share * jnp.var(batch, axis=0)
    variance = variance + share * (1.0 - share) * jnp.square(apart)
    return Moments(size, moments.mean + share * apart, variance)


def mean_of_newest(
    mean: Float[Array, ""],
    num_before: Int[Array, ""],
    ended: Bool[Array, "T B"],
    values: Float[Array, "T B"],
    size: int,
) -> Float[Array, ""]:
    """Of the values of what has ended: a running mean that looks back over about ``size`` of them.

    Args:
      mean: of those before.
      num_before: how many those were. Up to ``size`` in all, the mean is a plain one.
      ended: where something has.
      values: of it; anything elsewhere.
      size: how many count.
    """
    count = jnp.sum(ended)
    total = jnp.sum(jnp.where(ended, values, 0.0))
    share = jnp.minimum(count / jnp.clip(num_before + count, 1, size), 1.0)
    moved = mean * (1.0 - share) + share * total / jnp.maximum(count, 1)
    return jnp.where(count > 0, moved, mean)


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
