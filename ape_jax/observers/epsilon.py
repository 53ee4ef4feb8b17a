"""A greedy clone that samples now and then."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from ape_jax.core.distributions import Categorical
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.observers.candidates import Candidates, likeliest, stack
from ape_jax.observers.fitting import Cloner
from ape_jax.types import PRNGKey

EPSILONS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)


@struct.dataclass
class EpsilonPolicy:
    """A policy without memory that samples with probability ε, and is greedy otherwise."""

    policy: Any
    epsilon: Float[Array, "..."] | float

    def initial_carry(self) -> tuple[()]:
        """Nothing is remembered."""
        return ()

    def __call__(self, carry, observation, last_action) -> tuple[Any, Any]:
        """The mixture of both distributions of the action."""
        _, sampled = self.policy(carry, observation, last_action)
        by_greedy = sampled.temper(0.0)
        log_probs = jnp.logaddexp(
            jnp.log(self.epsilon) + sampled.log_probs,
            jnp.log1p(-self.epsilon) + by_greedy.log_probs,
        )
        return carry, Categorical(log_probs)


@dataclasses.dataclass(frozen=True)
class Epsilon:
    """Behaviour cloning of discrete actions, deployed greedily but for a share of the steps."""

    cloning: Cloner
    """The observer whose clone it deploys."""

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> Candidates:
        """Clone, and offer the clone with every share of ``EPSILONS``."""
        clone = self.cloning.fit(key, demonstrations)
        mixed = [EpsilonPolicy(clone, epsilon) for epsilon in EPSILONS]
        return likeliest(stack(mixed), demonstrations)
