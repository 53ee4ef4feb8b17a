"""Time to the end: how to finish sooner, learned without rewards."""

import dataclasses

import jax
import jax.numpy as jnp

from ape_jax.core.policies import TablePolicy
from ape_jax.demonstrations import episodes
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.observers import values
from ape_jax.observers.supported import Supported, SupportedPolicy
from ape_jax.observers.values import Units
from ape_jax.types import PRNGKey


@dataclasses.dataclass(frozen=True)
class TimeToEnd(Supported):
    """One step of look-ahead on the time that demonstrators still take to the end of the task.

    It needs the order of steps and the ends, and no rewards. D(s) is the mean number of steps from
    s to the end of the task, over the episodes that arrive there. The score of an action is minus
    the mean of 1 + D(next observation); an action that ends the task takes one step. It suits tasks
    whose end is their goal. Where no episode arrives, all supported actions are alike.
    """

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> SupportedPolicy | TablePolicy:
        """Fit D to steps that arrive, and then the scores to D at the next observation."""
        steps = episodes.steps_to_end(demonstrations)
        arrives = episodes.arrives(demonstrations).astype(jnp.float32)
        if self.networks.num_states is not None:
            return self._tabulate(demonstrations, steps, arrives)
        networks, units = values.in_standard_units(self.networks), Units.of(steps, arrives)
        key_start, key_times, key_scores = jax.random.split(key, 3)
        observations = demonstrations.observation
        times = self.fit_values(
            key_times,
            values.init(key_start, networks.critic, demonstrations),
            demonstrations,
            lambda params, rows: networks.value(params, observations[rows]),
            lambda rows: (units.to_units(steps[rows]), arrives[rows]),
        )
        next_observation, known, ended = episodes.following(demonstrations)
        weights = ((known | ended) & jnp.any(arrives > 0)).astype(jnp.float32)

        def targets(rows):
            later = units.from_units(networks.value(times, next_observation[rows]))
            # A network may fall below zero near the end.
            later = jnp.where(ended[rows], 0.0, jnp.maximum(later, 0.0))
            return -units.to_units(1.0 + later), weights[rows]

        return self.fit_scores(key_scores, networks, demonstrations, targets)

    def _tabulate(self, demonstrations: Demonstrations, steps, arrives) -> TablePolicy:
        states = demonstrations.observation
        size = self.networks.num_states
        visits = jnp.bincount(states, arrives, length=size)
        times = jnp.bincount(states, arrives * steps, length=size) / jnp.maximum(visits, 1.0)
        next_state, known, ended = episodes.following(demonstrations)
        later = jnp.where(ended, 0.0, times[next_state])
        weights = ended | (known & (visits[next_state] > 0))
        return self.tabulate_scores(demonstrations, -1.0 - later, weights.astype(jnp.float32))
