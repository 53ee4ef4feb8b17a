"""Returns and advantages of one trajectory."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ape_jax.core import platform


def discounted_returns(
    rewards: Float[Array, "T *batch"], discounts: Float[Array, "T *batch"]
) -> Float[Array, "T *batch"]:
    """Returns to go of one trajectory, or of several side by side.

        R(t) = r_t + γ_t R(t+1),      R(T) = 0

    The discount γ_t multiplies the return after step t; it is zero where nothing follows. A
    parallel scan needs log T steps instead of T, and more sums.
    """

    def backward(later, now):
        reward, gamma = now
        return_ = reward + gamma * later
        return return_, return_

    def join(later, now):
        (later_return, later_gamma), (reward, gamma) = later, now
        return reward + gamma * later_return, gamma * later_gamma

    steps = (rewards, discounts)
    if platform.forms().parallel_returns:
        returns, _ = jax.lax.associative_scan(join, steps, reverse=True)
    else:
        _, returns = jax.lax.scan(backward, jnp.zeros_like(rewards[0]), steps, reverse=True)
    return returns


def generalized_advantages(
    rewards: Float[Array, " T"],
    values: Float[Array, " T"],
    next_values: Float[Array, " T"],
    terminated: Bool[Array, " T"],
    truncated: Bool[Array, " T"],
    gamma: Float[Array, ""] | float,
    gae_lambda: Float[Array, ""] | float,
) -> Float[Array, " T"]:
    """GAE(λ) over episodes that follow each other (Schulman et al., arXiv 1506.02438, Eq. 16).

        δ_t = r_t + γ (1 − terminated_t) V(s'_t) − V(s_t)
        Â_t = δ_t + γ λ (1 − terminated_t)(1 − truncated_t) Â_{t+1}

    A truncated step still bootstraps, because the episode would have gone on. Both kinds of end
    stop the sum, because step t + 1 belongs to another episode.

    ``next_values`` holds V(s'_t) of the true successor, before any autoreset. λ = 0 gives one-step
    temporal differences, and λ = 1 gives returns minus values.
    """
    deltas = rewards + gamma * jnp.where(terminated, 0.0, next_values) - values
    decays = jnp.where(terminated | truncated, 0.0, gamma * gae_lambda)
    return discounted_returns(deltas, decays)
