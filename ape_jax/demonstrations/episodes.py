"""The order of demonstrated steps: what follows a step, and how its episode goes on.

All functions are pure and take steps [N] that lie episode after episode.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from ape_jax.demonstrations.collect import Demonstrations


class Following(NamedTuple):
    """The successor of each step."""

    observation: Shaped[Array, "N ..."]
    """The next observation of the episode; of no meaning where it is not known."""
    known: Bool[Array, " N"]
    """Whether the next observation was demonstrated. It is not at the last step of an episode."""
    ended: Bool[Array, " N"]
    """Whether the task ended with the step, so that nothing follows."""


def begins(demonstrations: Demonstrations) -> Bool[Array, " N"]:
    """The first step of each episode."""
    return jnp.diff(demonstrations.episode, prepend=-1) != 0


def last(demonstrations: Demonstrations) -> Bool[Array, " N"]:
    """The last step of each episode."""
    return jnp.roll(begins(demonstrations), -1).at[-1].set(True)


def following(demonstrations: Demonstrations) -> Following:
    """The successor of each step, as far as it was demonstrated."""
    return Following(
        observation=jnp.roll(demonstrations.observation, -1, axis=0),
        known=~last(demonstrations),
        ended=demonstrations.terminated,
    )


def returns_to_go(
    demonstrations: Demonstrations,
    rewards: Float[Array, " N"],
    gamma: Float[Array, ""] | float = 1.0,
) -> Float[Array, " N"]:
    """R(t) = r_t + γ r_{t+1} + … to the end of the episode, for any rewards [N]."""

    def join(later, earlier):
        # Two pieces x ↦ scale · x + sum, of which the earlier one is applied last.
        return later[0] * earlier[0], earlier[1] + earlier[0] * later[1]

    scales = jnp.where(last(demonstrations), 0.0, gamma).astype(jnp.float32)
    return jax.lax.associative_scan(join, (scales, rewards), reverse=True)[1]


def complete(demonstrations: Demonstrations) -> Bool[Array, " N"]:
    """The steps of the episodes whose end is marked, by the task or by its time limit."""
    episode = demonstrations.episode - demonstrations.episode[0]
    ends = (demonstrations.terminated | demonstrations.truncated).astype(jnp.int32)
    return jax.ops.segment_max(ends, episode, num_segments=len(episode))[episode].astype(bool)


def episode_returns(demonstrations: Demonstrations) -> Float[Array, " N"]:
    """The undiscounted return of each step's episode, as far as it was demonstrated."""
    episode = demonstrations.episode - demonstrations.episode[0]
    totals = jax.ops.segment_sum(demonstrations.reward, episode, num_segments=len(episode))
    return totals[episode]


def last_actions(demonstrations: Demonstrations) -> Shaped[Array, "N ..."]:
    """The action before each step; −1, in every dimension, at the first step of an episode."""
    actions = demonstrations.action
    at_start = begins(demonstrations).reshape(-1, *[1] * (actions.ndim - 1))
    return jnp.where(at_start, -1, jnp.roll(actions, 1, axis=0))
