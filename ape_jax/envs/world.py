"""An environment with everything that is fixed about it: parameters, time limit, spaces."""

import dataclasses
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces
from gymnax.environments.environment import Environment, EnvParams
from jaxtyping import Array, Bool, Float, Int, Shaped

from ape_jax.core.distributions import Categorical, Gaussian
from ape_jax.core.policies import ConstantPolicy, TablePolicy, remembers, tabulate
from ape_jax.core.tabular import FiniteMDP
from ape_jax.types import Policy

Bounds = tuple[tuple[float, ...], tuple[float, ...]]
"""Lowest and highest action, [D] each."""


class Moves(NamedTuple):
    """A finite world without chance, as tables."""

    next_state: Int[np.ndarray, "S A"]
    ends: Bool[np.ndarray, "S A"]
    """Whether the task ends with the action."""
    reward: Float[np.ndarray, "S A"]


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """An environment and what is fixed about it, as one record.

    Compared and hashed by identity, so that it can be a static argument of ``jax.jit``.
    """

    env: Environment
    params: EnvParams
    horizon: int
    """Time limit of an episode, in steps."""
    mdp: FiniteMDP | None = None
    """The environment as a finite MDP; None where it does not offer one."""

    @cached_property
    def moves(self) -> Moves | None:
        """The world as tables; None where chance or something hidden decides what an action does.

        Observations have to be the states of ``mdp``, whose rewards are taken as they are.
        """
        mdp = self.mdp
        if mdp is None or mdp.horizon != self.horizon or mdp.num_states != self.num_states:
            return None
        chances = np.asarray(mdp.transition)
        if not np.all((chances == 0.0) | (chances == 1.0)):
            return None
        next_state = np.argmax(chances, axis=-1).astype(np.int32)
        return Moves(next_state, np.asarray(mdp.terminal)[next_state], np.asarray(mdp.reward))

    @cached_property
    def observation_space(self) -> spaces.Space:
        """The space of observations."""
        # Some environments make arrays for their spaces, which must not become part of a program.
        with jax.ensure_compile_time_eval():
            return self.env.observation_space(self.params)

    @cached_property
    def action_space(self) -> spaces.Space:
        """The space of actions."""
        with jax.ensure_compile_time_eval():
            return self.env.action_space(self.params)

    @cached_property
    def num_states(self) -> int | None:
        """Size of a finite observation space (S); None for a continuous one."""
        return finite_size(self.observation_space)

    @cached_property
    def num_actions(self) -> int:
        """Discrete actions (A), or dimensions of a continuous one (D)."""
        return finite_size(self.action_space) or self.action_space.shape[0]

    @cached_property
    def action_bounds(self) -> Bounds | None:
        """Lowest and highest continuous action [D]; None where actions are discrete."""
        return None if finite_size(self.action_space) else action_bounds(self.action_space)

    @property
    def num_uniforms(self) -> int:
        """Uniform numbers that an action is drawn from (U), whatever the distribution."""
        return 1 if self.action_bounds is None else self.num_actions + 1

    @property
    def no_action(self) -> Shaped[Array, "..."]:
        """The last action at the first step of an episode: −1, in every dimension."""
        return jnp.int32(-1) if self.action_bounds is None else jnp.full(self.num_actions, -1.0)

    def clip_action(self, actions: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
        """Actions as the environment is given them: continuous ones within their bounds."""
        if self.action_bounds is None:
            return actions
        low, high = jnp.asarray(self.action_bounds)
        return jnp.clip(actions, *(x.reshape(*[1] * (actions.ndim - 1), -1) for x in (low, high)))

    def random_policy(self) -> ConstantPolicy:
        """Uniform discrete actions; continuous ones from N(0, 1) in halves of their range."""
        if self.action_bounds is None:
            size = self.num_actions
            return ConstantPolicy(Categorical(jnp.full(size, -jnp.log(size))))
        low, high = jnp.asarray(self.action_bounds)
        return ConstantPolicy(Gaussian(0.5 * (low + high), jnp.log(0.5 * (high - low))))

    def for_sampling(self, policy: Policy) -> Policy:
        """The policy as a rollout samples it.

        Where states are finite, it becomes a table of distributions that are ready to be sampled,
        so that a rollout computes nothing twice. A policy that remembers something stays as it is.
        """
        if self.num_states is None or remembers(policy):
            return policy
        return TablePolicy(tabulate(policy, self.num_states).table.for_sampling())


def finite_size(space: spaces.Space) -> int | None:
    """The number of elements of a discrete space; None for any other."""
    return int(space.n) if isinstance(space, spaces.Discrete) else None


def action_bounds(space: spaces.Box) -> Bounds:
    """Lowest and highest action [D] of a box; −1 and 1 where there is no bound."""
    low, high = np.broadcast_to(space.low, space.shape), np.broadcast_to(space.high, space.shape)
    bounded = np.isfinite(low) & np.isfinite(high)
    low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
    return tuple(map(float, low)), tuple(map(float, high))
