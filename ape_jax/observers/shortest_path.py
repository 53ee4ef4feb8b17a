"""The shortest way that was seen to an end of the task: an attacker who needs no rewards."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from ape_jax.observers.empirical import EmpiricalModel, Planner


@dataclasses.dataclass(frozen=True)
class ShortestPath(Planner):
    """The policy of fewest expected steps to an end, over transitions that were seen.

    Where observations are finite. It believes that to end the task is the aim, which is wrong
    where a task also ends by failure. An end that is farther than the time limit is none.
    """

    def rewards(self, model: EmpiricalModel) -> Float[Array, "S A"]:
        """Minus one for each step, whatever was paid."""
        return -jnp.ones_like(model.reward)
