"""Policies made of an ensemble's networks."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Shaped

from ape_jax.core import mixture
from ape_jax.core.distributions import Distribution, HeadDistribution
from ape_jax.core.policies import MemorylessPolicy, Tempered
from ape_jax.networks.ensemble import Networks
from ape_jax.types import LogWeightsFn, Params


@struct.dataclass
class HeadPolicy(MemorylessPolicy):
    """The policy of one head, or of several stacked [E, …] for ``jax.vmap``."""

    params: Params
    networks: Networks = struct.field(pytree_node=False)

    def distribution(self, observation: Shaped[Array, "..."]) -> HeadDistribution:
        """The head's distribution at one observation."""
        return self.networks.distribution(self.params, observation)


@struct.dataclass
class UniformWeights:
    """The weights w_c = 1/E at every observation."""

    num_experts: int = struct.field(pytree_node=False)

    def __call__(self, observation: Shaped[Array, "..."]) -> Float[Array, " E"]:
        """Log-weights at any observation."""
        return mixture.uniform_log_weights(self.num_experts)


@struct.dataclass
class LearnedWeights:
    """The weights q(c|s) of a classifier of the expert given the observation."""

    params: Params
    module: nn.Module = struct.field(pytree_node=False)

    def __call__(self, observation: Shaped[Array, "..."]) -> Float[Array, " E"]:
        """Log-weights at one observation."""
        return jax.nn.log_softmax(jnp.asarray(self.module.apply(self.params, observation)))


@struct.dataclass
class MixturePolicy(MemorylessPolicy):
    """The mixture of all heads, weighed at each observation (paper, Eq. 1)."""

    heads: Params
    networks: Networks = struct.field(pytree_node=False)
    log_weights: Any
    """A function of one observation to log-weights [E]; a pytree if the policy is to be one."""

    def distribution(self, observation: Shaped[Array, "..."]) -> Distribution:
        """The mixture at one observation."""
        experts = self.networks.distributions(self.heads, observation)
        return experts.mix(self.log_weights(observation))


@struct.dataclass
class PooledPolicy(MixturePolicy):
    """The mixture in the heads' own family: one Gaussian where actions are continuous."""

    def distribution(self, observation: Shaped[Array, "..."]) -> Distribution:
        """The pooled distribution at one observation."""
        experts = self.networks.distributions(self.heads, observation)
        return experts.pool(self.log_weights(observation))


def observer_policy(
    networks: Networks,
    heads: Params,
    log_weights: LogWeightsFn,
    temperature: Float[Array, ""] | float,
) -> Tempered:
    """The observer that an ensemble is trained against: all heads pooled, at a temperature."""
    return Tempered(PooledPolicy(heads, networks, log_weights), temperature)


def tabulate_ensemble(
    networks: Networks,
    heads: Params,
    log_weights: LogWeightsFn,
    temperature: Float[Array, ""] | float,
) -> tuple[Float[Array, "E S A"], Float[Array, "S A"]]:
    """The logarithms of every expert's policy and of their ``observer_policy``, in every state."""
    experts = networks.tabulate_experts(heads)
    weights = jax.vmap(log_weights)(jnp.arange(networks.num_states, dtype=jnp.int32))
    observer = jax.vmap(mixture.observer_log_probs, in_axes=(1, 0, None))(
        experts, weights, temperature
    )
    return experts, observer
