"""Policies that are made of nothing but distributions: tables, constants, tempered policies."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Shaped

from ape_jax.core.distributions import Distribution
from ape_jax.types import Policy


class MemorylessPolicy:
    """Base of the policies that depend on the observation alone."""

    def distribution(self, observation: Shaped[Array, "..."]) -> Any:
        """The ``Distribution`` of the action at one observation."""
        raise NotImplementedError

    def initial_carry(self) -> tuple[()]:
        """Nothing is remembered."""
        return ()

    def __call__(self, carry, observation, last_action) -> tuple[Any, Any]:
        """The carry as it is, and the distribution of the action."""
        return carry, self.distribution(observation)


@struct.dataclass
class TablePolicy(MemorylessPolicy):
    """A policy over a finite observation space, as a table of distributions [S, …]."""

    table: Any

    def distribution(self, observation: Shaped[Array, ""]) -> Any:
        """The row of the state."""
        return jax.tree.map(lambda rows: rows[observation], self.table)


@struct.dataclass
class ConstantPolicy(MemorylessPolicy):
    """A policy that has the same distribution at every observation."""

    constant: Any

    def distribution(self, observation: Shaped[Array, "..."]) -> Any:
        """The constant, whatever the observation."""
        return self.constant


@struct.dataclass
class Tempered:
    """A policy deployed at a temperature: π^(1/T), normalised."""

    policy: Any
    temperature: Float[Array, "..."] | float
    """T ≥ 0; one is the policy itself, zero is greedy with ties shared evenly."""

    def initial_carry(self) -> Any:
        """The carry of the policy before an episode."""
        return self.policy.initial_carry()

    def __call__(self, carry, observation, last_action) -> tuple[Any, Distribution]:
        """The next carry, and the tempered distribution."""
        carry, distribution = self.policy(carry, observation, last_action)
        return carry, distribution.temper(self.temperature)


def greedy(policy: Policy) -> Tempered:
    """The same policy, deployed greedily; ties are shared evenly."""
    return Tempered(policy, 0.0)


def remembers(policy: Policy) -> bool:
    """Whether the policy depends on more than the current observation."""
    return bool(jax.tree.leaves(policy.initial_carry()))


@jax.default_matmul_precision("highest")
def tabulate(policy: Policy, num_states: int) -> TablePolicy:
    """The table [S, …] of a policy that remembers nothing, over states 0 … S − 1."""
    no_action = jnp.int32(-1)
    states = jnp.arange(num_states, dtype=jnp.int32)
    return TablePolicy(jax.vmap(lambda state: policy((), state, no_action)[1])(states))
