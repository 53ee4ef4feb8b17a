"""Sums over the steps of episodes for each state and action: all that the losses need of them.

A loss that is linear in the returns, or quadratic with a factor of the state alone, depends on
trajectories only through how often each pair of state and action came, and through the sums of the
returns that followed and of their squares. A batch of any size therefore becomes tables [S, A], and
networks see each state once.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ape_jax.core import platform
from ape_jax.core.returns import discounted_returns
from ape_jax.types import Transition


class Visits(NamedTuple):
    """Sums for each state and action, averaged over episodes."""

    counts: Float[Array, "*G S A"]
    """Number of steps in the state with the action."""
    returns: Float[Array, "*G S A"]
    """Sum of the returns to go R(t) after them."""
    squares: Float[Array, "*G S A"]
    """Sum of the squares of these returns."""
    undiscounted: Float[Array, "*G"]
    """Undiscounted return of an episode."""

    def lengths(self) -> Float[Array, "*G"]:
        """Length of an episode, in steps."""
        return jnp.sum(self.counts, axis=(-2, -1))


def of_episodes(
    episodes: Transition, gamma: Float[Array, ""] | float, num_states: int, num_actions: int
) -> Visits:
    """Visits [G, S, A] of blocks of episodes [T, G, N] in a finite observation space."""
    returns = discounted_returns(episodes.reward, jnp.full_like(episodes.reward, gamma))
    counts, returns, squares = count(
        episodes.observation, episodes.action, returns, episodes.mask, num_states, num_actions
    )
    num_episodes = episodes.mask.shape[-1]
    return Visits(
        counts=counts / num_episodes,
        returns=returns / num_episodes,
        squares=squares / num_episodes,
        undiscounted=jnp.mean(jnp.sum(episodes.reward, axis=0), axis=-1),
    )


def of_one_policy(
    episodes: Transition, gamma: Float[Array, ""] | float, num_states: int, num_actions: int
) -> Visits:
    """Visits [S, A] of the episodes [T, N] of one policy."""
    one_block = jax.tree.map(lambda x: x[:, None], episodes)
    found = of_episodes(one_block, gamma, num_states, num_actions)
    return jax.tree.map(lambda x: x[0], found)


def count(
    states: Int[Array, "T G N"],
    actions: Int[Array, "T G N"],
    returns: Float[Array, "T G N"],
    mask: Bool[Array, "T G N"],
    num_states: int,
    num_actions: int,
) -> tuple[Float[Array, "G S A"], Float[Array, "G S A"], Float[Array, "G S A"]]:
    """Sums of 1, R and R² over the steps in the mask, for each block, state and action.

    The sums are float32, so counts are exact up to 2^24.
    """
    powers = jnp.stack([jnp.ones_like(returns), returns, returns**2], axis=-1)
    powers = jnp.where(mask[..., None], powers, 0.0)
    num_blocks = states.shape[1]
    if platform.forms().one_hot:
        taken = jax.nn.one_hot(actions, num_actions)[..., None] * powers[..., None, :]
        sums = jnp.einsum(
            "tgns,tgnap->gsap",
            jax.nn.one_hot(states, num_states),
            taken,
            precision=jax.lax.Precision.HIGHEST,
        )
    else:
        blocks = jnp.arange(num_blocks, dtype=jnp.int32)[:, None]
        pairs = (blocks[None] * num_states + states) * num_actions + actions
        sums = jnp.zeros((num_blocks * num_states * num_actions, 3))
        sums = sums.at[pairs.reshape(-1)].add(powers.reshape(-1, 3), mode="promise_in_bounds")
    sums = sums.reshape(num_blocks, num_states, num_actions, 3)
    return sums[..., 0], sums[..., 1], sums[..., 2]
