"""Samples of states, actions and returns, one for each step."""

from typing import NamedTuple

from jaxtyping import Array, Float, Int, Shaped


class Samples(NamedTuple):
    """Observations, actions and the returns that followed, with any leading axes."""

    observation: Shaped[Array, "..."]
    action: Int[Array, "..."]
    returns: Float[Array, "..."]
    """Return to go R(t) after the action; or the mean of several returns."""
    variances: Float[Array, "..."] | None = None
    """Variance of the returns that a sample is the mean of; None means zero."""
    weights: Float[Array, "..."] | None = None
    """Weight of a sample; None means that each counts once."""
    expert: Int[Array, "..."] | None = None
    """Index of the expert that acted; None where the observer acted, or where an axis says it."""
