"""Inverse soft Q-learning: a clone whose probabilities must agree with values over time."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ape_jax.demonstrations import episodes
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.networks import HeadPolicy, Networks
from ape_jax.observers import fitting, values
from ape_jax.observers.fitting import Training
from ape_jax.types import PRNGKey

HELD_OUT_STEPS = 4096
"""Number of held-out steps that say when the fit was best."""


@dataclasses.dataclass(frozen=True)
class InverseSoftQ(Training):
    """IQ-Learn from demonstrations alone (Garg et al., arXiv 2106.12142), for discrete actions.

    It needs the order of steps and the ends, and no rewards. The policy is π = softmax Q, with the
    soft value V = logsumexp Q. A Q implies the rewards r = Q(s, a) − γ V(s'). The loss is

        mean of (V(s) − Q(s, a)) + r² / 4α

    It is the paper's objective with the χ² regulariser, in which the mean of V(s) − γ V(s') over
    demonstrated steps stands for the value at the start. The first part is the loss of behaviour
    cloning. The second asks for small rewards, so that a policy counts as likely only if it can be
    followed. Like any clone it is drawn to the average of the experts.

    A step without a known successor that did not end the task implies no reward, and has part in
    the first part alone.
    """

    networks: Networks
    """The head's outputs are Q."""
    _: dataclasses.KW_ONLY
    num_updates: int = 6000
    batch_size: int = 256
    gamma: float = 0.99
    """Discount in each step (γ)."""
    alpha: float = 10.0
    """Weight of the demonstrations against small rewards (α); infinity is behaviour cloning."""

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> HeadPolicy:
        """Fit Q, with early stopping."""
        networks = values.in_standard_units(self.networks)
        next_observation, known, ended = episodes.following(demonstrations)
        shown, kept = fitting.split(demonstrations)
        key_init, key_kept, key_updates = jax.random.split(key, 3)
        kept_rows = fitting.draw(key_kept, kept, HELD_OUT_STEPS)

        def outputs(params, observation) -> Float[Array, "N A"]:
            return jnp.asarray(networks.head.apply(params, observation))

        def loss(params, rows: Int[Array, " N"]) -> Float[Array, ""]:
            q = outputs(params, demonstrations.observation[rows])
            taken = jnp.arange(q.shape[-1])[None] == demonstrations.action[rows][:, None]
            of_action = jnp.sum(jnp.where(taken, q, 0.0), axis=-1)
            value = jax.nn.logsumexp(q, axis=-1)
            next_value = jax.nn.logsumexp(outputs(params, next_observation[rows]), axis=-1)
            reward = of_action - self.gamma * jnp.where(ended[rows], 0.0, next_value)
            implied = jnp.where((known | ended)[rows], jnp.square(reward), 0.0)
            return jnp.mean(value - of_action + implied / (4.0 * self.alpha))

        params = self.minimize(
            key_updates,
            values.init(key_init, networks.head, demonstrations),
            lambda params, key: loss(params, fitting.draw(key, shown, self.batch_size)),
            lambda params: loss(params, kept_rows),
        )
        return HeadPolicy(params, networks)
