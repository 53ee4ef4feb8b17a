"""The strongest attacker of each threat model, and how many demonstrations it needs."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.evaluation.attackers import ATTACKERS, lacks, threat_of
from ape_jax.evaluation.audit_records import Curve, ThreatRow
from ape_jax.evaluation.deployment import Outcome
from ape_jax.evaluation.intervals import Interval
from ape_jax.observers.threats import THREATS

Outcomes = Mapping[tuple[str, str], Outcome]
"""Outcomes [K] by observer and deployment."""

RECOVERED = 0.9
"""Share of the way from a random policy to the ensemble at which demonstrations are enough."""


class Scale(NamedTuple):
    """The returns that clones are compared with, and a summary over seeds."""

    pe_return: np.ndarray
    """Return of the ensemble in each seed [K]."""
    random_return: float
    summarise: Callable[[Any], Interval]

    def fraction(self, clone_return: np.ndarray) -> Interval | None:
        """Share of the ensemble's return, from that of a random policy; None if there is none."""
        above = self.pe_return - self.random_return
        if not np.all(above > 1e-6):
            return None
        return self.summarise((clone_return - self.random_return) / above)


def strongest(outcomes: Outcomes, threat: str) -> tuple[str, str] | None:
    """The attack with the highest mean return, of those that a threat model allows.

    It is chosen by returns of other episodes than those that score it.
    """
    allowed = {
        attack: float(np.mean(outcome.choice_return))
        for attack, outcome in outcomes.items()
        if threat_of(*attack) in THREATS[threat].includes
    }
    return max(allowed, key=lambda attack: allowed[attack], default=None)


def threat_rows(
    defence: str, threats: Iterable[str], outcomes: Outcomes, scale: Scale
) -> tuple[ThreatRow, ...]:
    """The strongest attack of each threat model that has any."""
    rows = []
    for threat in threats:
        attack = strongest(outcomes, threat)
        if attack is not None:
            clone_return = np.asarray(outcomes[attack].clone_return, np.float64)
            rows.append(
                ThreatRow(
                    defence=defence,
                    threat=threat,
                    attacker=attack[0],
                    deployment=attack[1],
                    clone_return=scale.summarise(clone_return),
                    fraction=scale.fraction(clone_return),
                )
            )
    return tuple(rows)


def clone_of(row: ThreatRow) -> str:
    """The attacker, and after a comma which of its clones it is: a name for ``attack``."""
    return f"{row.attacker}, {row.deployment.partition(', ')[2]}"


def points(
    rows: Sequence[ThreatRow],
    run: Callable[[str, Demonstrations], Mapping[str, Outcome]],
    shown: Demonstrations,
    num_steps: int,
    scale: Scale,
) -> tuple[Curve, ...]:
    """Points of the curves: returns of the attackers of these rows with fewer steps.

    Args:
      rows: the strongest attacks on one ensemble with all demonstrations.
      run: attacks with the clone of this name, and gives outcomes by deployment.
      shown: all demonstrations [K, N, …].
      num_steps: number of steps that attackers get here.
      scale: what returns are compared with.
    """
    part = jax.tree.map(lambda x: x[:, :num_steps], shown)
    if num_steps < shown.action.shape[1]:
        missing = lacks(part)
        outcomes = {
            (attacker, deployment): outcome
            for attacker, clone in dict.fromkeys((x.attacker, clone_of(x)) for x in rows)
            if not any(need in missing for need in ATTACKERS[attacker].needs)
            for deployment, outcome in run(clone, part).items()
        }
        threats = [row.threat for row in rows]
        rows = threat_rows(rows[0].defence, threats, outcomes, scale) if rows else ()
    episodes = float(np.mean(np.asarray(part.episode[:, -1] - part.episode[:, 0]))) + 1.0
    return tuple(
        Curve(
            defence=row.defence,
            threat=row.threat,
            num_steps=num_steps,
            episodes=episodes,
            attacker=row.attacker,
            deployment=row.deployment,
            clone_return=row.clone_return,
            fraction=row.fraction,
        )
        for row in rows
    )


def with_episodes(rows: Sequence[ThreatRow], curves: Sequence[Curve]) -> tuple[ThreatRow, ...]:
    """The same rows with the numbers of episodes that are needed."""
    return tuple(
        dataclasses.replace(
            row,
            episodes_needed=episodes_needed([x for x in curves if x.threat == row.threat]),
        )
        for row in rows
    )


def episodes_needed(points: Sequence[Curve]) -> float | None:
    """Episodes with which a threat model's attackers get ``RECOVERED`` of the ensemble's return.

    Between two points of the curve the mean share is taken as linear in the logarithm of the
    number of episodes. None where it is never reached, or where there is no share.
    """
    below: tuple[float, float] | None = None
    for point in sorted(points, key=lambda point: point.num_steps):
        if point.fraction is None:
            return None
        share = point.fraction.mean
        if share >= RECOVERED:
            if below is None or below[0] >= point.episodes:
                return point.episodes
            start, low = below
            part = (RECOVERED - low) / (share - low)
            return math.exp(math.log(start) + part * math.log(point.episodes / start))
        below = point.episodes, share
    return None
