"""Behaviour cloning: the policy of maximum likelihood given pooled demonstrations."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ape_jax.core.distributions import Categorical
from ape_jax.core.mixture import LOG_FLOOR
from ape_jax.core.policies import TablePolicy
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.networks import HeadPolicy, Networks
from ape_jax.observers import fitting
from ape_jax.observers.fitting import Training
from ape_jax.types import Params, Policy, PRNGKey


@dataclasses.dataclass(frozen=True)
class TabularCloning:
    """Counts of actions in each state: exact maximum likelihood where observations are finite.

    A state that was never shown gets the uniform policy.
    """

    num_states: int
    num_actions: int

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> TablePolicy:
        """Count the actions of each state, and divide by their sum."""
        return self.fit_weighted(key, demonstrations, None)

    def fit_weighted(
        self, key: PRNGKey, demonstrations: Demonstrations, weights: Float[Array, " N"] | None
    ) -> TablePolicy:
        """The same where each step counts as much as its weight."""
        del key
        counts = count(demonstrations, weights, self.num_states, self.num_actions)
        totals = jnp.sum(counts, axis=-1, keepdims=True)
        probs = jnp.where(totals > 0, counts / jnp.maximum(totals, 1e-30), 1.0 / self.num_actions)
        return TablePolicy(Categorical(jnp.maximum(jnp.log(probs), LOG_FLOOR)))


def count(
    demonstrations: Demonstrations,
    weights: Float[Array, " N"] | None,
    num_states: int,
    num_actions: int,
) -> Float[Array, "S A"]:
    """Counts of each action in each state; each step counts once where weights are None."""
    pair = demonstrations.observation * num_actions + demonstrations.action
    counts = jnp.bincount(pair, weights, length=num_states * num_actions)
    return counts.reshape(num_states, num_actions).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class BehaviourCloning(Training):
    """A network fitted by maximum likelihood, with early stopping on held-out episodes.

    Where observations are finite, the counts of actions are all that the loss needs, so every
    update sees all demonstrations; elsewhere an update sees a minibatch.
    """

    networks: Networks
    """The clone is one head of this kind."""
    _: dataclasses.KW_ONLY
    batch_size: int = 4096
    learning_rate: float = 1e-2

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> HeadPolicy:
        """Minimise −log π(action|observation)."""
        return self.fit_weighted(key, demonstrations, None)

    def fit_weighted(
        self, key: PRNGKey, demonstrations: Demonstrations, weights: Float[Array, " N"] | None
    ) -> HeadPolicy:
        """The same where each step counts as much as its weight."""
        fit = self._fit_batches if self.networks.num_states is None else self._fit_counts
        return HeadPolicy(fit(jax.random.split(key, 3), demonstrations, weights), self.networks)

    def _fit_batches(self, keys, demonstrations: Demonstrations, weights) -> Params:
        def loss(params, observation, action):
            return -self.networks.distribution(params, observation).log_prob(action)

        return self.fit_samples(keys, self.networks.head.init, loss, demonstrations, weights)

    def _fit_counts(self, keys, demonstrations: Demonstrations, weights) -> Params:
        key_init, _, key_updates = keys
        networks = self.networks
        states = jnp.arange(networks.num_states, dtype=jnp.int32)
        shown, kept = (
            count(demonstrations, weights, len(states), networks.num_actions)
            for weights in fitting.split(demonstrations, weights)
        )

        def cross_entropy(params: Params, counts: Float[Array, "S A"]) -> Float[Array, ""]:
            log_probs = jax.vmap(networks.log_probs, (None, 0))(params, states)
            return -jnp.sum(counts * log_probs) / jnp.maximum(jnp.sum(counts), 1e-9)

        return self.minimize(
            key_updates,
            networks.head.init(key_init, demonstrations.observation[0]),
            lambda params, key: cross_entropy(params, shown),
            lambda params: cross_entropy(params, kept),
        )


@dataclasses.dataclass(frozen=True)
class Limited:
    """Behaviour cloning of the first steps only, by a network that may be small."""

    cloning: fitting.Cloner
    num_steps: int
    """Demonstration steps that it gets to see; all, if there are fewer."""

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> Policy:
        """Clone the first steps."""
        return self.cloning.fit(key, jax.tree.map(lambda x: x[: self.num_steps], demonstrations))
