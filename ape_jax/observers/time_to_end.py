"""Time to the end: how to finish sooner, learned without rewards."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ape_jax.demonstrations import episodes
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.observers import values
from ape_jax.observers.supported import Supported, SupportedPolicy
from ape_jax.types import PRNGKey


@dataclasses.dataclass(frozen=True)
class TimeToEnd(Supported):
    """One step of look-ahead on the time that demonstrators still take to the end of the task.

    It needs the order of steps and the ends, and no rewards. D(s) is the time to the end, with
    D(s) = mean of 1 + γ D(next observation), zero after the end. The score of an action is minus
    the same mean over the steps where it was taken. It suits tasks whose end is their goal. Where
    no episode arrives, all supported actions are alike. It is for observations that are not finite;
    ``ShortestPath`` is for those that are.

    Mean times of whole episodes would not do: the experts of an ensemble differ in speed, and stay
    the same for an episode. So a cell where mostly fast ones pass would seem to be near the end.
    """

    _: dataclasses.KW_ONLY
    learning_rate: float = 1e-2
    gamma: float = 0.99
    """Discount of later steps (γ). It keeps times finite where nobody arrives."""

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> SupportedPolicy:
        """Fit D, and then the scores to D at the next observation."""
        next_observation, known, ended = episodes.following(demonstrations)
        counts = ((known | ended) & jnp.any(ended)).astype(jnp.float32)
        networks = values.in_standard_units(self.networks)
        each_step = demonstrations._replace(reward=jnp.ones(len(counts)))
        units = values.of_returns(each_step, self.gamma)

        def targets(critic, rows: Int[Array, " B"]) -> Float[Array, " B"]:
            later = units.from_units(networks.value(critic, next_observation[rows]))
            return units.to_units(1.0 + self.gamma * jnp.where(ended[rows], 0.0, later))

        def loss(critic, key) -> Float[Array, ""]:
            rows = jax.random.randint(key, (self.batch_size,), 0, len(counts))
            times = networks.value(critic, demonstrations.observation[rows])
            errors = times - jax.lax.stop_gradient(targets(critic, rows))
            return jnp.mean(counts[rows] * jnp.square(errors))

        key_start, key_times, key_scores = jax.random.split(key, 3)
        start = values.init(key_start, networks.critic, demonstrations)
        # The targets move along with the parameters, so no held-out loss says where to stop.
        critic = self.minimize(key_times, start, loss, held_out_loss=None)
        return self.fit_scores(
            key_scores,
            networks,
            demonstrations,
            lambda rows: (-targets(critic, rows), counts[rows]),
        )
