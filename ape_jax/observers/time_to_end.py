"""Time to the end: how to finish sooner, learned without rewards."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ape_jax.core.policies import TablePolicy
from ape_jax.core.tabular import exact_einsum
from ape_jax.demonstrations import episodes
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.observers import values
from ape_jax.observers.supported import Supported, SupportedPolicy
from ape_jax.types import PRNGKey

NUM_SWEEPS = 1000
"""Sweeps over all states in which the times of finite worlds are computed."""


@dataclasses.dataclass(frozen=True)
class TimeToEnd(Supported):
    """One step of look-ahead on the time that demonstrators still take to the end of the task.

    It needs the order of steps and the ends, and no rewards. D(s) is the time to the end, with
    D(s) = mean of 1 + γ D(next observation), zero after the end. The score of an action is minus
    the same mean over the steps where it was taken. It suits tasks whose end is their goal. Where
    no episode arrives, all supported actions are alike.

    Mean times of whole episodes would not do: the experts of an ensemble differ in speed, and stay
    the same for an episode. So a cell where mostly fast ones pass would seem to be near the end.
    """

    _: dataclasses.KW_ONLY
    learning_rate: float = 1e-2
    gamma: float = 0.99
    """Discount of later steps (γ). It keeps times finite where nobody arrives."""

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> SupportedPolicy | TablePolicy:
        """Fit D, and then the scores to D at the next observation."""
        next_observation, known, ended = episodes.following(demonstrations)
        counts = ((known | ended) & jnp.any(ended)).astype(jnp.float32)
        if self.networks.num_states is not None:
            times = self.times(demonstrations, counts)
            later = jnp.where(ended, 0.0, times[next_observation])
            return self.tabulate_scores(demonstrations, -1.0 - self.gamma * later, counts)
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

    def times(
        self, demonstrations: Demonstrations, counts: Float[Array, " N"]
    ) -> Float[Array, " S"]:
        """D of every finite state, where each step counts as much as given.

        In a state that was never left it is the longest time, 1/(1 − γ).
        """
        states, ended = demonstrations.observation, demonstrations.terminated
        size = self.networks.num_states
        visits = jnp.bincount(states, counts, length=size)
        moves = jnp.zeros((size, size)).at[states, jnp.roll(states, -1)].add(counts * ~ended)
        moves = moves / jnp.maximum(visits, 1.0)[:, None]
        longest = 1.0 / (1.0 - self.gamma)

        def sweep(times, _):
            later = 1.0 + self.gamma * exact_einsum("st,t->s", moves, times)
            return jnp.where(visits > 0, later, longest), None

        times, _ = jax.lax.scan(sweep, jnp.full(size, longest), length=NUM_SWEEPS)
        return times
