"""What a loss needs of trajectories: which pairs came, what followed, and how often they count."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from ape_jax.core import returns
from ape_jax.types import Transition


class Visits(NamedTuple):
    """Observations and actions of trajectories [T, ...], or of their mean [S * A, ...]."""

    observation: Shaped[Array, "..."]
    """What the actor saw."""
    action: Int[Array, "..."]
    """What it did."""
    returns: Float[Array, "..."]
    """R(t), the return to go: of a step, or the mean of a pair."""
    variances: Float[Array, "..."]
    """Of the returns about that mean; zero for a step."""
    weights: Float[Array, "..."]
    """How often the entry counts: a step once up to the end and not after it, a pair as often as it
    comes in a trajectory."""


def every_step(episodes: Transition, gamma: Float[Array, ""] | float) -> Visits:
    """One entry a step of episodes [T, ...]."""
    discounts = jnp.full_like(episodes.reward, gamma)
    nothing = jnp.zeros_like(episodes.reward)
    return Visits(
        observation=episodes.observation,
        action=episodes.action,
        returns=returns.discounted_returns(episodes.reward, discounts),
        variances=nothing,
        weights=episodes.live.astype(episodes.reward.dtype),
    )


def every_pair(visits: Visits, num_states: int, num_actions: int) -> Visits:
    """The mean of trajectories, one entry a state and action.

    A loss that is linear in the returns, or quadratic with a factor of the state alone, depends on
    trajectories only through how often each pair came and the returns that followed: their mean,
    and their variance in the error of a critic. A batch of any size becomes S * A entries, and
    networks need not see a state twice.

    Args:
      visits: of blocks of trajectories [T, G, N] in a finite observation space.
      num_states: S.
      num_actions: A.

    Returns:
      Visits [S * A, G, 1]: of every pair mean and variance of the return, and as weight its visits
      in a trajectory. Sums are float32: counts are exact up to 2^24 visits of a pair, totals of
      returns round from there on.
    """
    _, num_blocks, num_trajectories = visits.action.shape
    num_pairs = num_states * num_actions
    blocks = jnp.arange(num_blocks, dtype=jnp.int32)[:, None]
    pairs = (blocks[None] * num_states + visits.observation) * num_actions + visits.action
    powers = jnp.stack([jnp.ones_like(visits.returns), visits.returns, visits.returns**2], axis=-1)
    amounts = (visits.weights[..., None] * powers).reshape(-1, 3)
    sums = jnp.zeros((num_blocks * num_pairs, 3))
    sums = sums.at[pairs.reshape(-1)].add(amounts, mode="promise_in_bounds")
    counts, totals, squares = jnp.moveaxis(
        sums.reshape(num_blocks, num_pairs, 1, 3), (3, 1), (0, 1)
    )
    means = totals / jnp.maximum(counts, 1.0)
    states, actions = jnp.divmod(jnp.arange(num_pairs, dtype=jnp.int32), num_actions)
    return Visits(
        observation=jnp.broadcast_to(states[:, None, None], counts.shape),
        action=jnp.broadcast_to(actions[:, None, None], counts.shape),
        returns=means,
        variances=jnp.maximum(squares / jnp.maximum(counts, 1.0) - means**2, 0.0),
        weights=counts / num_trajectories,
    )
