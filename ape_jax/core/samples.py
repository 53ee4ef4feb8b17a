"""Samples of states, actions and returns: one for each step, or one for each state and action."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from ape_jax.core import returns
from ape_jax.types import Transition


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


def every_step(episodes: Transition, gamma: Float[Array, ""] | float) -> Samples:
    """One sample for each step of episodes [T, ...]; steps after the end have weight zero."""
    discounts = jnp.full_like(episodes.reward, gamma)
    return Samples(
        observation=episodes.observation,
        action=episodes.action,
        returns=returns.discounted_returns(episodes.reward, discounts),
        variances=jnp.zeros_like(episodes.reward),
        weights=episodes.mask.astype(episodes.reward.dtype),
    )


def aggregate_by_state_action(steps: Samples, num_states: int, num_actions: int) -> Samples:
    """One sample for each pair of state and action, which stands for all steps with that pair.

    A loss that is linear in the returns, or quadratic with a factor of the state alone, depends on
    trajectories only through how often each pair came and through the mean and the variance of the
    returns that followed. A batch of any size therefore becomes S * A samples, and networks see
    each state once.

    Args:
      steps: samples of blocks of trajectories [T, G, N] in a finite observation space.
      num_states: S.
      num_actions: A.

    Returns:
      Samples [S * A, G, 1]. The weight of a pair is how often it comes in a trajectory on average.
      Sums are float32, so counts are exact up to 2^24.
    """
    assert steps.weights is not None
    _, num_blocks, num_trajectories = steps.action.shape
    num_pairs = num_states * num_actions
    blocks = jnp.arange(num_blocks, dtype=jnp.int32)[:, None]
    pairs = (blocks[None] * num_states + steps.observation) * num_actions + steps.action
    powers = jnp.stack([jnp.ones_like(steps.returns), steps.returns, steps.returns**2], axis=-1)
    amounts = (steps.weights[..., None] * powers).reshape(-1, 3)
    sums = jnp.zeros((num_blocks * num_pairs, 3))
    sums = sums.at[pairs.reshape(-1)].add(amounts, mode="promise_in_bounds")
    counts, totals, squares = jnp.moveaxis(
        sums.reshape(num_blocks, num_pairs, 1, 3), (3, 1), (0, 1)
    )
    means = totals / jnp.maximum(counts, 1.0)
    states, actions = jnp.divmod(jnp.arange(num_pairs, dtype=jnp.int32), num_actions)
    return Samples(
        observation=jnp.broadcast_to(states[:, None, None], counts.shape),
        action=jnp.broadcast_to(actions[:, None, None], counts.shape),
        returns=means,
        variances=jnp.maximum(squares / jnp.maximum(counts, 1.0) - means**2, 0.0),
        weights=counts / num_trajectories,
    )
