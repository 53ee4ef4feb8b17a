"""Offline Q-iteration: the best policy that the demonstrated transitions and rewards allow."""

import dataclasses

from jaxtyping import Array, Float

from ape_jax.observers.empirical import EmpiricalModel, Planner


@dataclasses.dataclass(frozen=True)
class OfflineQ(Planner):
    """Q-iteration on the model that demonstrations show, where observations are finite.

    It imitates nobody. It joins the best parts of all episodes, and so may return more than the
    experts do. An action that was never seen is never taken, and a state without any is avoided.
    """

    def rewards(self, model: EmpiricalModel) -> Float[Array, "S A"]:
        """The mean rewards that were demonstrated."""
        return model.reward
