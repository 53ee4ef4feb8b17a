"""The shortest way that was seen to an end of the task: an attacker who needs no rewards."""

import dataclasses

import jax.numpy as jnp

from ape_jax.core.policies import TablePolicy
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.observers.empirical import action_values, empirical_model, greedy_table
from ape_jax.types import PRNGKey


@dataclasses.dataclass(frozen=True)
class ShortestPath:
    """The policy of fewest expected steps to an end, over transitions that were seen.

    Where observations are finite. It believes that to end the task is the aim, which is wrong
    where a task also ends by failure.
    """

    num_states: int
    num_actions: int
    horizon: int
    """Time limit of an episode, in steps; an end that is farther is none."""

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> TablePolicy:
        """Count the steps to the ends that were seen, and take the action with the fewest."""
        del key
        model = empirical_model(demonstrations, self.num_states, self.num_actions)
        each_step = -jnp.ones_like(model.reward)
        return greedy_table(action_values(model, each_step, self.horizon))
