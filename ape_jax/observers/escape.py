"""A greedy clone that leaves circles: it samples where it has been before."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from ape_jax.core.policies import Tempered
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.observers import fitting
from ape_jax.observers.fitting import Cloner
from ape_jax.types import PRNGKey

MAX_FEATURES = 16
"""Longer observations are projected to so many random directions, which keeps distances."""


@struct.dataclass
class FiniteEscape:
    """A policy that is greedy in a state at its first visit of an episode, and samples after."""

    policy: Any
    num_states: int = struct.field(pytree_node=False)

    def initial_carry(self) -> Bool[Array, " S"]:
        """No state has been visited."""
        return jnp.zeros(self.num_states, bool)

    def __call__(self, carry, observation, last_action) -> tuple[Any, Any]:
        """The states visited, and the distribution of the action."""
        temperature = jnp.where(carry[observation], 1.0, 0.0)
        _, acts = Tempered(self.policy, temperature)((), observation, last_action)
        return carry.at[observation].set(True), acts


@struct.dataclass
class NearEscape:
    """The same where observations are vectors or images: one close to an earlier one recurs."""

    policy: Any
    projection: Float[Array, "..."]
    """Observations in standard units to features [F, D]."""
    centre: Float[Array, "..."]
    """Mean of the demonstrated observations [F]."""
    radius: Float[Array, "..."]
    """Distance of features within which an observation recurs."""
    memory: int = struct.field(pytree_node=False)
    """Number of observations that are remembered, the newest."""

    def initial_carry(self) -> tuple[Float[Array, "M D"], Int[Array, ""]]:
        """Places that are far from everything, and no step made."""
        return jnp.full((self.memory, self.projection.shape[-1]), 1e6), jnp.int32(0)

    def __call__(self, carry, observation, last_action) -> tuple[Any, Any]:
        """The places that are remembered, and the distribution of the action."""
        places, time = carry
        here = (jnp.ravel(observation).astype(jnp.float32) - self.centre) @ self.projection
        distances = jnp.sqrt(jnp.sum(jnp.square(places - here[None]), axis=-1))
        temperature = jnp.where(jnp.min(distances) <= self.radius, 1.0, 0.0)
        _, acts = Tempered(self.policy, temperature)((), observation, last_action)
        return (places.at[time % self.memory].set(here), time + 1), acts


@dataclasses.dataclass(frozen=True)
class Escape:
    """Behaviour cloning, greedy, but sampled where an observation recurs within the episode.

    A trap keeps a greedy clone in a circle, and sampling at the second visit is enough to leave it.
    It does not help where the mistake of a greedy clone never recurs. Two finite observations are
    the same or not. Others recur if they are closer than ``closeness`` of the typical distance
    between demonstrated observations.
    """

    cloning: Cloner
    """The observer whose clone it deploys."""
    num_states: int | None
    """Size of a finite observation space (S); None for a continuous one."""
    closeness: float = 0.02
    memory: int = 128
    """Observations that are remembered, the newest; all where they are finite."""

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> FiniteEscape | NearEscape:
        """Clone, and measure how far apart demonstrated observations are."""
        key_clone, key_projection, key_pairs = jax.random.split(key, 3)
        clone = self.cloning.fit(key_clone, demonstrations)
        if self.num_states is not None:
            return FiniteEscape(clone, self.num_states)
        flat = fitting.flat_observations(demonstrations)
        centre, scale = fitting.standard_units(flat)
        projection = _projection(key_projection, flat.shape[1]) * scale[:, None]
        first, second = flat[jax.random.randint(key_pairs, (2, 1024), 0, len(flat))]
        typical = jnp.median(jnp.linalg.norm((first - second) @ projection, axis=-1))
        return NearEscape(clone, projection, centre, self.closeness * typical, self.memory)


def _projection(key: PRNGKey, size: int) -> Float[Array, "F D"]:
    """The identity, or random directions where there are many features."""
    if size <= MAX_FEATURES:
        return jnp.eye(size)
    return jax.random.normal(key, (size, MAX_FEATURES)) / jnp.sqrt(MAX_FEATURES)
