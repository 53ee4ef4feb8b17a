"""Implicit Q-learning: the best policy that the demonstrations hold the pieces of."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ape_jax.demonstrations import episodes
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.networks import HeadPolicy, Networks
from ape_jax.observers import values
from ape_jax.observers.fitting import Training
from ape_jax.observers.values import ActionValues
from ape_jax.types import PRNGKey

MAX_WEIGHT = 100.0
"""Largest weight of a step in the fit of the policy."""


@dataclasses.dataclass(frozen=True)
class ImplicitQ(Training):
    """Offline reinforcement learning by implicit Q-learning (Kostrikov et al., arXiv 2110.06169).

    It needs the order of steps, rewards and ends. V(s) is an upper expectile of Q(s, ·) over the
    demonstrated actions, and Q(s, a) is fitted to r + γ V(s'). So the values are those of the best
    demonstrated actions, put together over episodes, and no action that was not demonstrated is
    ever asked for. The policy is a clone in which each step weighs exp(β (Q − V) / σ), where σ is
    the standard deviation of Q − V.

    A step without a known successor that did not end the task says nothing about Q: it has no part
    in the values, and weighs one in the clone.
    """

    networks: Networks
    """The policy is one head of this kind."""
    _: dataclasses.KW_ONLY
    gamma: float = 0.99
    """Discount of rewards in each step (γ)."""
    num_updates: int = 10_000
    batch_size: int = 256
    learning_rate: float = 1e-2
    expectile: float = 0.7
    """Weight of errors where Q is above V; the others weigh one minus it. One half is the mean."""
    sharpness: float | None = None
    """β: zero clones all steps alike. None is 3 where actions are discrete, and 1 where they are
    continuous: there a Gaussian that follows few heavy steps takes actions between them."""

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> HeadPolicy:
        """Learn Q, V and the policy at once, by one loss in which each has its own term."""
        networks = values.in_standard_units(self.networks)
        action_values = ActionValues(networks)
        units = values.of_returns(demonstrations, self.gamma)
        next_observation, known, ended = episodes.following(demonstrations)

        def loss(params, key) -> Float[Array, ""]:
            rows = jax.random.randint(key, (self.batch_size,), 0, len(known))
            head, critic, action_critic = params
            observation, action, reward = (x[rows] for x in demonstrations[:3])
            value = networks.value(critic, observation)
            next_value = units.from_units(networks.value(critic, next_observation[rows]))
            target = reward + self.gamma * jnp.where(ended[rows], 0.0, next_value)
            action_value = action_values(action_critic, observation, action)
            advantage = jax.lax.stop_gradient(action_value) - value
            says = (known | ended)[rows].astype(jnp.float32)
            weights = self._weights(jax.lax.stop_gradient(says * advantage))
            log_probs = values.log_probs(networks, head, observation, action)
            error = action_value - jax.lax.stop_gradient(units.to_units(target))
            side = jnp.where(advantage > 0, self.expectile, 1.0 - self.expectile)
            of_values = jnp.square(error) + side * jnp.square(advantage)
            return jnp.mean(says * of_values) - jnp.mean(weights * log_probs)

        key_head, key_critic, key_actions, key_updates = jax.random.split(key, 4)
        start = (
            values.init(key_head, networks.head, demonstrations),
            values.init(key_critic, networks.critic, demonstrations),
            action_values.init(key_actions, demonstrations),
        )
        # The targets move along with the parameters, so no held-out loss says where to stop.
        head, _, _ = self.minimize(key_updates, start, loss, held_out_loss=None)
        return HeadPolicy(head, networks)

    def _weights(self, advantages: Float[Array, " N"]) -> Float[Array, " N"]:
        """Weights of steps in the fit of the policy."""
        sharpness = self.sharpness
        if sharpness is None:
            sharpness = 3.0 if self.networks.action_bounds is None else 1.0
        deviation = jnp.maximum(jnp.std(advantages), 1e-6)
        return jnp.minimum(jnp.exp(sharpness * advantages / deviation), MAX_WEIGHT)
