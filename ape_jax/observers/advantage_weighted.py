"""Cloning in which better actions count more."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ape_jax.demonstrations import episodes
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.networks import Networks
from ape_jax.observers.fitting import Cloner, Training
from ape_jax.types import Policy, PRNGKey

MAX_WEIGHT = 20.0


@dataclasses.dataclass(frozen=True)
class AdvantageWeighted(Training):
    """Advantage-weighted regression (Peng et al., arXiv 1910.00177) on demonstrations.

    A step weighs exp(A / (λ σ)): A is the return that followed it minus the mean return that
    follows in its state, and σ is the standard deviation of A. Weights are at most ``MAX_WEIGHT``.
    Where all returns are as expected, this is plain cloning.
    """

    cloning: Cloner
    """The observer that clones the weighed steps."""
    networks: Networks
    """The mean return is learned by a critic of this kind."""
    _: dataclasses.KW_ONLY
    temperature: float = 0.5
    """λ."""
    gamma: float = 0.99
    """Discount of rewards per step."""

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> Policy:
        """Weigh the steps, and clone."""
        key_values, key_clone = jax.random.split(key)
        weights = self.weights(key_values, demonstrations)
        return self.cloning.fit_weighted(key_clone, demonstrations, weights)

    def weights(self, key: PRNGKey, demonstrations: Demonstrations) -> Float[Array, " N"]:
        """Weights of the steps; zero where the end of the episode was not demonstrated."""
        returns = episodes.returns_to_go(demonstrations, demonstrations.reward, self.gamma)
        counts = episodes.complete(demonstrations)
        counts = (counts | ~jnp.any(counts)).astype(jnp.float32)
        advantages = returns - self._expected(key, demonstrations, returns, counts)
        variance = jnp.average(jnp.square(advantages), weights=counts)
        rounding = 1e-4 * jnp.max(jnp.abs(returns)) + 1e-6
        scaled = advantages / (self.temperature * jnp.maximum(jnp.sqrt(variance), rounding))
        return counts * jnp.minimum(jnp.exp(scaled), MAX_WEIGHT)

    def _expected(self, key, demonstrations, returns, counts) -> Float[Array, " N"]:
        """The mean return to go in the state of each step."""
        num_states, states = self.networks.num_states, demonstrations.observation
        if num_states is not None:
            total = functools.partial(
                jax.ops.segment_sum, segment_ids=states, num_segments=num_states
            )
            times = jnp.maximum(total(counts), 1.0)
            mean = (total(counts * returns) / times)[states]
            # The rounding of a long sum is a large error of a mean; that of its remainder is not.
            return mean + (total(counts * (returns - mean)) / times)[states]
        centre, unit = jnp.average(returns, weights=counts), jnp.std(returns) + 1e-6

        def loss(critic, observation, target):
            return jnp.square(self.networks.value(critic, observation) - target)

        labelled: Any = demonstrations._replace(action=(returns - centre) / unit)
        init, keys = self.networks.critic.init, jax.random.split(key, 3)
        critic = self.fit_samples(keys, init, loss, labelled, counts)
        values = jax.lax.map(lambda x: self.networks.value(critic, x), states, batch_size=4096)
        return centre + values * unit
