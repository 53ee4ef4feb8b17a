"""The policies that observers fit: pytrees that map one observation to log-probabilities."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Shaped

from ape_jax.core.distributions import Distribution
from ape_jax.networks import Networks
from ape_jax.types import Params


@struct.dataclass
class TablePolicy:
    """log π(·|s) as a table."""

    log_probs: Float[Array, "S A"]
    """Of every action in every state."""

    def __call__(self, state: Shaped[Array, ""]) -> Float[Array, " A"]:
        """Log-probabilities at one observation."""
        return self.log_probs[state]


@struct.dataclass
class HeadPolicy:
    """log π(·|observation) of a Flax head."""

    params: Params
    """Of one head."""
    head: nn.Module = struct.field(pytree_node=False)
    """Its module."""

    def __call__(self, observation: Shaped[Array, "..."]) -> Float[Array, " A"]:
        """Log-probabilities at one observation."""
        return jax.nn.log_softmax(jnp.asarray(self.head.apply(self.params, observation)))


@struct.dataclass
class GaussianPolicy:
    """A Gaussian head's distribution of continuous actions."""

    params: Params
    """Of one head."""
    networks: Networks = struct.field(pytree_node=False)
    """Its module, and the actions' bounds."""

    def __call__(self, observation: Shaped[Array, "..."]) -> Distribution:
        """What it is at one observation."""
        return self.networks.policy(self.params, observation)


@struct.dataclass
class Modes:
    """Several clones, and how often each was seen to act; one is drawn for each episode."""

    policies: TablePolicy | HeadPolicy
    """Stacked, [M, …]."""
    shares: Float[Array, " M"]
    """Share of the demonstrated episodes; zero for a mode that is not used."""
