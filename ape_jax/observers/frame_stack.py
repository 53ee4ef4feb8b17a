"""A clone of the last few observations and actions, instead of the last observation alone."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Shaped

from ape_jax.demonstrations import episodes
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.networks import Networks, with_statistics
from ape_jax.observers import fitting, values
from ape_jax.types import Params, PRNGKey


@struct.dataclass
class FrameStackPolicy:
    """A policy of the last k observations, and of the k actions before now."""

    params: Params
    frames: "Frames" = struct.field(pytree_node=False)

    def initial_carry(self) -> Float[Array, "K F"]:
        """Nothing has been observed."""
        return jnp.zeros((self.frames.num_frames, self.frames.size))

    def __call__(self, carry, observation, last_action) -> tuple[Float[Array, "K F"], Any]:
        """The last frames, and the distribution of the action."""
        newest = self.frames.of_step(observation, last_action)
        carry = jnp.concatenate([newest[None], carry[:-1]])
        return carry, self.frames.networks.distribution(self.params, carry.reshape(-1))


@dataclasses.dataclass(frozen=True)
class Frames:
    """Frames of features [F]: an observation, and the action before it. Hashable."""

    experts: Networks
    """The experts' networks, whose spaces the frames are made of."""
    num_frames: int
    hidden_sizes: tuple[int, ...]

    @property
    def size(self) -> int:
        """Features of one frame (F)."""
        shape = self.experts.observation_shape
        of_observation = self.experts.num_states or math.prod(shape)
        return of_observation + self.experts.num_actions

    @property
    def networks(self) -> Networks:
        """One head on all frames, flat."""
        return values.of_vectors(self.experts, self.num_frames * self.size, self.hidden_sizes)

    def of_step(
        self, observation: Shaped[Array, "..."], last_action: Shaped[Array, "..."]
    ) -> Float[Array, " F"]:
        """The frame of one step. Numbers of states and actions become indicators."""
        if self.experts.num_states is not None:
            observed = jax.nn.one_hot(observation, self.experts.num_states)
        else:
            observed = jnp.ravel(observation).astype(jnp.float32)
        acted = last_action
        if self.experts.action_bounds is None:
            acted = jax.nn.one_hot(last_action, self.experts.num_actions)
        return jnp.concatenate([observed, acted])

    def of_rows(
        self, demonstrations: Demonstrations, rows: Int[Array, " M"]
    ) -> Float[Array, "M KF"]:
        """The frames before and at some steps; zeros before the start of an episode."""
        last_actions = episodes.last_actions(demonstrations)

        def at(lag):
            earlier = jnp.maximum(rows - lag, 0)
            same = demonstrations.episode[earlier] == demonstrations.episode[rows]
            observed = jax.vmap(self.of_step)(
                demonstrations.observation[earlier], last_actions[earlier]
            )
            return jnp.where((same & (rows >= lag))[:, None], observed, 0.0)

        return jnp.concatenate([at(lag) for lag in range(self.num_frames)], axis=-1)


@dataclasses.dataclass(frozen=True)
class FrameStack(fitting.Training):
    """Behaviour cloning by a network that sees the last k observations and actions."""

    networks: Networks
    """The experts' networks, whose spaces the clone takes over."""
    num_frames: int = 4
    """k."""
    hidden_sizes: tuple[int, ...] = (64, 64)

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> FrameStackPolicy:
        """Minimise −log π(action|last k observations and actions)."""
        key_init, key_kept, key_statistics, key_updates = jax.random.split(key, 4)
        frames = Frames(self.networks, self.num_frames, self.hidden_sizes)
        networks = frames.networks
        shown, kept = fitting.split(demonstrations)

        def batch_loss(params, key, weights):
            rows = fitting.draw(key, weights, self.batch_size)
            features = frames.of_rows(demonstrations, rows)

            def log_prob(features, action):
                return networks.distribution(params, features).log_prob(action)

            return -jnp.mean(jax.vmap(log_prob)(features, demonstrations.action[rows]))

        some = frames.of_rows(demonstrations, fitting.draw(key_statistics, shown, 4096))
        start = networks.head.init(key_init, some[0])
        params = self.minimize(
            key_updates,
            with_statistics(start, *fitting.standard_units(some)),
            lambda params, key: batch_loss(params, key, shown),
            lambda params: batch_loss(params, key_kept, kept),
        )
        return FrameStackPolicy(params, frames)
