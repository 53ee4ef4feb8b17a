"""Behaviour cloning: the policy of maximum likelihood given pooled demonstrations."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Shaped

from ape_jax.core.mixture import LOG_FLOOR
from ape_jax.demonstrations import Demonstrations
from ape_jax.networks import Networks
from ape_jax.types import Params, PRNGKey


@struct.dataclass
class TablePolicy:
    """log π(·|s) as a table."""

    log_probs: Float[Array, "S A"]

    def __call__(self, state: Shaped[Array, ""]) -> Float[Array, " A"]:
        """Log-probabilities at one observation."""
        return self.log_probs[state]


@struct.dataclass
class HeadPolicy:
    """log π(·|observation) of a Flax head."""

    params: Params
    head: nn.Module = struct.field(pytree_node=False)

    def __call__(self, observation: Shaped[Array, "..."]) -> Float[Array, " A"]:
        """Log-probabilities at one observation."""
        return jax.nn.log_softmax(jnp.asarray(self.head.apply(self.params, observation)))


@dataclasses.dataclass(frozen=True)
class TabularCloning:
    """Counts of actions in each state: exact maximum likelihood where observations are finite.

    A state that was never shown gets the uniform policy.
    """

    num_states: int
    num_actions: int

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> TablePolicy:
        """Count, and divide."""
        del key
        pair = demonstrations.observation * self.num_actions + demonstrations.action
        counts = jnp.bincount(pair, length=self.num_states * self.num_actions)
        counts = counts.reshape(self.num_states, self.num_actions).astype(jnp.float32)
        totals = jnp.sum(counts, axis=-1, keepdims=True)
        probs = jnp.where(totals > 0, counts / jnp.maximum(totals, 1.0), 1.0 / self.num_actions)
        return TablePolicy(jnp.maximum(jnp.log(probs), LOG_FLOOR))


@dataclasses.dataclass(frozen=True)
class BehaviourCloning:
    """A network of the experts' own kind, fitted by cross-entropy on minibatches."""

    networks: Networks
    """Of the experts: the clone gets one head of the same shape."""
    num_updates: int = 2000
    batch_size: int = 4096
    """Steps drawn, with replacement, for each update."""
    learning_rate: float = 1e-2
    """Adam step at the start; it falls along a half cosine to zero."""

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> HeadPolicy:
        """Minimise −log π(action|observation)."""
        key_init, key_updates = jax.random.split(key)
        head = self.networks.head
        params = head.init(key_init, demonstrations.observation[0])
        optimizer = optax.adam(optax.cosine_decay_schedule(self.learning_rate, self.num_updates))
        num_steps = demonstrations.action.shape[0]

        def loss(params, rows):
            policy = self.networks.tabulate(lambda o: self.networks.log_probs(params, o))
            log_probs = jax.vmap(policy)(demonstrations.observation[rows])
            taken = jnp.take_along_axis(log_probs, demonstrations.action[rows][:, None], axis=-1)
            return -jnp.mean(taken)

        def update(carry, key):
            params, opt_state = carry
            rows = jax.random.randint(key, (self.batch_size,), 0, num_steps)
            changes, opt_state = optimizer.update(jax.grad(loss)(params, rows), opt_state)
            return (optax.apply_updates(params, changes), opt_state), None

        carry = (params, optimizer.init(params))
        (params, _), _ = jax.lax.scan(
            update, carry, jax.random.split(key_updates, self.num_updates)
        )
        return HeadPolicy(params, head)
