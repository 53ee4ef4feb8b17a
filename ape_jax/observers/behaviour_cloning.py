"""Behaviour cloning: the policy of maximum likelihood given pooled demonstrations."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from ape_jax.core.mixture import LOG_FLOOR
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.networks import Networks
from ape_jax.observers import fitting
from ape_jax.observers.policies import GaussianPolicy, HeadPolicy, TablePolicy
from ape_jax.types import Params, PRNGKey


@dataclasses.dataclass(frozen=True)
class TabularCloning:
    """Counts of actions in each state: exact maximum likelihood where observations are finite.

    A state that was never shown gets the uniform policy.
    """

    num_states: int
    """States (S)."""
    num_actions: int
    """Actions (A)."""

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> TablePolicy:
        """Count, and divide."""
        del key
        counts = count(demonstrations, None, self.num_states, self.num_actions)
        totals = jnp.sum(counts, axis=-1, keepdims=True)
        probs = jnp.where(totals > 0, counts / jnp.maximum(totals, 1.0), 1.0 / self.num_actions)
        return TablePolicy(jnp.maximum(jnp.log(probs), LOG_FLOOR))


def count(
    demonstrations: Demonstrations,
    weights: Float[Array, " N"] | None,
    num_states: int,
    num_actions: int,
) -> Float[Array, "S A"]:
    """How often each action was taken in each state, each step with its weight or one."""
    pair = demonstrations.observation * num_actions + demonstrations.action
    counts = jnp.bincount(pair, weights, length=num_states * num_actions)
    return counts.reshape(num_states, num_actions).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class BehaviourCloning:
    """A network fitted by cross-entropy, stopped where held-out episodes are likeliest.

    Where observations are finite, the counts say all that the loss needs, so every update sees all
    demonstrations; elsewhere an update sees a minibatch. Of continuous actions the clone is a
    Gaussian: with a spread of the state, the one with the mean and variance of what was shown.
    """

    networks: Networks
    """The clone gets one head of this shape, such as the experts' own."""
    num_updates: int = 2000
    """Steps of the optimiser."""
    batch_size: int = 4096
    """Steps drawn, with replacement, for an update where observations are not finite."""
    learning_rate: float = 1e-2
    """Adam step at the start; it falls along a half cosine to zero."""

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> HeadPolicy | GaussianPolicy:
        """Minimise −log π(action|observation)."""
        key_init, key_rows, key_updates = jax.random.split(key, 3)
        networks = self.networks
        kept = fitting.held_out(demonstrations)
        shown, kept = fitting.either(~kept), fitting.either(kept)

        if networks.num_states is not None:
            states = jnp.arange(networks.num_states, dtype=jnp.int32)
            size = (networks.num_states, networks.num_actions)

            def rows(key, weights):
                return states, count(demonstrations, weights, *size)

            training = rows(key_rows, shown)

            def minibatch(key):
                return training
        else:

            def rows(key, weights):
                picked = fitting.draw(key, weights, self.batch_size)
                actions = demonstrations.action[picked]
                if networks.action_bounds is None:
                    actions = jax.nn.one_hot(actions, networks.num_actions)
                return demonstrations.observation[picked], actions

            def minibatch(key):
                return rows(key, shown)

        def cross_entropy(
            params: Params,
            observations: Shaped[Array, "M ..."],
            weights: Float[Array, "M A"],
        ) -> Float[Array, ""]:
            if networks.action_bounds is not None:
                return -jnp.mean(
                    jax.vmap(lambda o, a: networks.policy(params, o).log_prob(a))(
                        observations, weights
                    )
                )
            log_probs = jax.vmap(networks.log_probs, (None, 0))(params, observations)
            return -jnp.sum(weights * log_probs) / jnp.maximum(jnp.sum(weights), 1e-9)

        testing = rows(key_rows, kept)
        params = fitting.descend(
            key_updates,
            fitting.standardize(
                networks.head.init(key_init, demonstrations.observation[0]), demonstrations
            ),
            lambda params, key: cross_entropy(params, *minibatch(key)),
            lambda params: cross_entropy(params, *testing),
            self.num_updates,
            self.learning_rate,
        )
        if networks.action_bounds is not None:
            return GaussianPolicy(params, networks)
        return HeadPolicy(params, networks.head)
