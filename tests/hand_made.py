"""Demonstrations that tests write down, an observer who knows the answer, a grid of vectors."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ape_jax.core.distributions import Categorical
from ape_jax.core.policies import MemorylessPolicy, TablePolicy
from ape_jax.demonstrations import collect
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.envs import GridWorld, spaces


def steps(observation, action, lengths, reward=None, ends=(), limits=()):
    """Steps of episodes of these lengths.

    The task ended in the episodes ``ends``, the time limit cut ``limits``, and the others go on
    beyond what is shown.
    """
    episode = np.repeat(np.arange(len(lengths)), lengths)
    last = np.append(np.diff(episode) != 0, True)
    reward = np.zeros(len(episode)) if reward is None else reward
    return Demonstrations(
        observation=jnp.asarray(observation),
        action=jnp.asarray(action),
        reward=jnp.asarray(reward, jnp.float32),
        terminated=jnp.asarray(last & np.isin(episode, list(ends))),
        truncated=jnp.asarray(last & np.isin(episode, list(limits))),
        episode=jnp.asarray(episode),
    )


def table(probs):
    """The policy with these probabilities [S, A]."""
    return TablePolicy(Categorical(jnp.log(jnp.maximum(jnp.asarray(probs, jnp.float32), 1e-30))))


def show(world, probs, num_steps, seed=0):
    """Steps of one policy [S, A] in a world of finitely many states, by a compiled function."""
    return _show(world, num_steps)(jax.random.key(seed), jnp.asarray(probs))


def _show(world, num_steps, made={}):  # noqa: B006  Keeps what was compiled.
    def sample(key, probs):
        rows = Categorical(jnp.log(jnp.maximum(probs, 1e-30))).for_sampling()
        act = TablePolicy(rows).distribution
        return collect.pool(key, world, lambda x, _: act(x), 1, num_steps)[0]

    return made.setdefault((world, num_steps), jax.jit(sample))


@dataclasses.dataclass(frozen=True)
class Known:
    """An observer whose clone is a policy that is given."""

    policy: Any

    def fit(self, key, demonstrations):
        return self.policy

    def fit_weighted(self, key, demonstrations, weights):
        return self.policy


@struct.dataclass
class Recorded(MemorylessPolicy):
    """A policy that holds what it was made of, and never acts."""

    demonstrations: Demonstrations


class Recorder:
    """An observer whose clone holds what it was shown."""

    def fit(self, key, demonstrations):
        return Recorded(demonstrations)


class Coordinates(GridWorld):
    """The grid where row and column are observed as a vector."""

    def observe(self, key, state, action, params):
        return jnp.stack([state.row, state.column]).astype(jnp.float32)

    def observation_space(self, params=None):
        return spaces.Box(0.0, self.size - 1.0, (2,))
