"""Offline Q-iteration: the best policy that the demonstrated transitions and rewards allow."""

import dataclasses

from ape_jax.core.policies import TablePolicy
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.observers.empirical import action_values, empirical_model, greedy_table
from ape_jax.types import PRNGKey


@dataclasses.dataclass(frozen=True)
class OfflineQ:
    """Q-iteration on the model that demonstrations show, where observations are finite.

    It imitates nobody. It joins the best parts of all episodes, and so may return more than the
    experts do. An action that was never seen is never taken, and a state without any is avoided.
    """

    num_states: int
    num_actions: int
    horizon: int
    """Time limit of an episode, in steps."""

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> TablePolicy:
        """Estimate rewards and transitions, and act best in them."""
        del key
        model = empirical_model(demonstrations, self.num_states, self.num_actions)
        return greedy_table(action_values(model, model.reward, self.horizon))
