"""Running means and variances, and the calibration of a classifier."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class RunningStatistics(NamedTuple):
    """Mean and variance of numbers, or of each entry of vectors [F]."""

    size: Float[Array, ""]
    """Number of numbers or vectors that they summarise."""
    mean: Float[Array, "*F"]
    variance: Float[Array, "*F"]

    def scale(self) -> Float[Array, "*F"]:
        """One over the standard deviation."""
        return 1.0 / jnp.sqrt(self.variance + 1e-8)


def init_statistics(shape: tuple[int, ...]) -> RunningStatistics:
    """Mean zero and variance one, with so little weight that the first batch replaces them."""
    return RunningStatistics(jnp.float32(1e-4), jnp.zeros(shape), jnp.ones(shape))


def merge(statistics: RunningStatistics, batch: Float[Array, "N *F"]) -> RunningStatistics:
    """The statistics of all earlier batches and of this one together (Chan et al., 1979)."""
    size = statistics.size + batch.shape[0]
    difference = jnp.mean(batch, axis=0) - statistics.mean
    share = batch.shape[0] / size
    variance = (1.0 - share) * statistics.variance + share * jnp.var(batch, axis=0)
    variance = variance + share * (1.0 - share) * jnp.square(difference)
    return RunningStatistics(size, statistics.mean + share * difference, variance)


def mean_of_newest(
    mean: Float[Array, ""],
    num_before: Int[Array, ""],
    ended: Bool[Array, "T B"],
    values: Float[Array, "T B"],
    size: int,
) -> Float[Array, ""]:
    """Running mean of one value for each episode, over about the last ``size`` episodes.

    Args:
      mean: mean over the ``num_before`` episodes that ended before. It is a plain mean up to
        ``size`` episodes.
      num_before: number of those episodes.
      ended: steps at which an episode ended.
      values: the value of that episode; anything at other steps.
      size: how many episodes count.
    """
    count = jnp.sum(ended)
    total = jnp.sum(jnp.where(ended, values, 0.0))
    share = jnp.minimum(count / jnp.clip(num_before + count, 1, size), 1.0)
    moved = mean * (1.0 - share) + share * total / jnp.maximum(count, 1)
    return jnp.where(count > 0, moved, mean)


def expected_calibration_error(
    log_probs: Float[Array, "N E"], labels: Int[Array, " N"], weights: Float[Array, " N"]
) -> Float[Array, ""]:
    """Mean distance between confidence and accuracy (Guo et al., arXiv 1706.04599, Eq. 3).

        Σ_b n_b / N · |accuracy_b − confidence_b|,    b one of ten equal bins of the confidence

    Args:
      log_probs: log-probability of every class, for each example.
      labels: the true classes.
      weights: how much each example counts; n_b is the sum of the weights in a bin.
    """
    num_bins = 10
    confidence = jnp.exp(jnp.max(log_probs, axis=-1))
    right = (jnp.argmax(log_probs, axis=-1) == labels).astype(jnp.float32)
    bins = jnp.clip((confidence * num_bins).astype(jnp.int32), 0, num_bins - 1)
    # A sum over all bins instead of a scatter, which a TPU runs one element after another.
    differences = weights * (right - confidence)
    sums = jnp.sum(jax.nn.one_hot(bins, num_bins) * differences[:, None], axis=0)
    return jnp.sum(jnp.abs(sums)) / jnp.sum(weights)
