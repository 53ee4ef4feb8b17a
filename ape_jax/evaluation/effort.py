"""The effort of an audit, and everything that observers are made from."""

import dataclasses
from typing import NamedTuple

from ape_jax.algorithms.task import Task
from ape_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Effort:
    """Amounts of data and computation that observers get. Hashable."""

    num_steps: int = 1_000_000
    curve_steps: tuple[int, ...] = (10, 30, 100, 300, 1_000, 3_000, 10_000, 100_000, 1_000_000)
    """Demonstration steps at which the best attacker of each threat model attacks again."""
    limited_steps: int = 1_000
    limited_width: int = 8
    """Hidden units of ``limited``."""
    fit_updates: int = 4000
    recurrent_updates: int = 1000
    latent_restarts: int = 8
    """Random starts of expectation maximisation; the one with the highest likelihood counts."""
    gail_updates: int = 250
    dagger_rounds: int = 9
    practice_steps: int = 100_000
    """Steps that an attacker acts at random, to learn what actions do."""
    num_episodes: int = 2048
    """Episodes behind each return that is sampled: half to choose by, half to score."""

    def within(self, num_steps: int) -> "Effort":
        """The same effort with this many demonstration steps, which are the curve's last point."""
        return dataclasses.replace(
            self,
            num_steps=num_steps,
            limited_steps=min(self.limited_steps, num_steps),
            curve_steps=(*(steps for steps in self.curve_steps if steps < num_steps), num_steps),
        )


QUICK = Effort(
    num_steps=100_000,
    curve_steps=(1_000, 100_000),
    fit_updates=1000,
    recurrent_updates=200,
    latent_restarts=3,
    gail_updates=50,
    practice_steps=20_000,
)


class Setting(NamedTuple):
    """Everything that an observer is made from."""

    task: Task
    effort: Effort
    heads: Params | None
    """Parameters of the experts [E, …]; None where there are only demonstrations."""
