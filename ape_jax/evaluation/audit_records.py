"""The records of an audit."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ape_jax.evaluation.intervals import Interval
from ape_jax.evaluation.records import OPTIONAL
from ape_jax.settings.audit import AuditSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditRow:
    """The result of one observer's clone of one ensemble, in one way of deploying it."""

    defence: str
    observer: str
    deployment: str
    sees: str
    """The threat model that the attack needs; ``experts`` for a yardstick that looks inside."""
    clone_return: Interval
    gap: Interval
    """Return of the ensemble (PE) minus that of the clone."""
    fraction: Interval | None
    """Share of the ensemble's return that the clone gets, where a uniformly random policy is 0.
    None where the ensemble is no better than random in some seed."""
    agreement: Interval
    """Probability of the action that a demonstrator took, mean over held-out steps."""
    log_likelihood: Interval | None
    """Nats for each held-out step; of sampled clones only."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Defence:
    """An ensemble that was attacked. What cannot be known of it is None."""

    name: str
    label: str
    num_experts: int | None = None
    trapped: tuple[bool, ...] | None = dataclasses.field(default=None, metadata=OPTIONAL)
    """Whether each seed's trap ensemble is one."""
    from_every_start: tuple[bool, ...] | None = dataclasses.field(default=None, metadata=OPTIONAL)
    """Whether its greedy experts arrive from every start."""
    settings: str | None = dataclasses.field(default=None, metadata=OPTIONAL)
    """Settings that were chosen for it by its price."""
    pe_return: Interval
    expert_returns: tuple[tuple[float, ...], ...] | None = None
    """Return of each expert [K, E]."""
    worst_expert: Interval | None = None
    greedy_experts: Interval | None = None
    """Mean over the experts, each deployed greedily itself."""
    worst_greedy_expert: Interval | None = None
    price: Interval | None = None
    """Optimal return minus that of the ensemble (PE)."""
    floor: Interval | None = None
    """Least return of the ideal sampling cloner."""
    mixture_entropy: Interval | None = None
    """Nats for each step."""
    posterior_entropy: tuple[Interval, ...] | None = None
    """Entropy of the expert at each step of an episode, in nats."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ThreatRow:
    """The strongest attack on one ensemble under one threat model."""

    defence: str
    threat: str
    attacker: str
    deployment: str
    clone_return: Interval
    """In other episodes than those that the attack was chosen by."""
    fraction: Interval | None
    """Share of the ensemble's return, as in ``AuditRow``."""
    episodes_needed: float | None = None
    """Episodes with which the threat model's attackers get 90 % of the way from a random policy to
    the ensemble; None where they never do."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """The strongest attack under one threat model, with so many demonstrations."""

    defence: str
    threat: str
    num_steps: int
    episodes: float
    """Episodes that begin in these steps, mean over seeds."""
    attacker: str
    deployment: str
    clone_return: Interval
    fraction: Interval | None
    """Share of the ensemble's return, as in ``AuditRow``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit:
    """The content of ``audit.json``."""

    env: str
    horizon: int
    fingerprint: str | None
    """Fingerprint of the run's parameters; None where no run was audited."""
    options: AuditSettings
    complete: bool
    """False while it is computed, and where it was interrupted."""
    seeds: int
    num_steps: int
    random_return: float
    optimal_return: float | None
    """None without a finite MDP."""
    threats: tuple[ThreatRow, ...] = ()
    rows: tuple[AuditRow, ...] = ()
    defences: tuple[Defence, ...] = ()
    curves: tuple[Curve, ...] = ()
    skipped: dict[str, str]
    """Observers that could not run, with the reason."""
    wall_seconds: float = 0.0

    def joined(self, found: Mapping[str, Any]) -> "Audit":
        """The same audit with more records: tuples become longer, mappings larger."""
        joined = {}
        for name, new in found.items():
            old = getattr(self, name)
            joined[name] = old | new if isinstance(old, dict) else old + new
        return dataclasses.replace(self, **joined)

    def threats_of(self, defence: str) -> list[ThreatRow]:
        """The strongest attacks on one ensemble, by threat model."""
        return [row for row in self.threats if row.defence == defence]

    def rows_of(self, defence: str) -> list[AuditRow]:
        """Rows of one ensemble, the strongest attacker first."""
        rows = [row for row in self.rows if row.defence == defence]
        return sorted(rows, key=lambda row: -row.clone_return.mean)
