"""The records of the suite."""

import dataclasses
from typing import Any

from ape_jax.evaluation.audit_records import ThreatRow
from ape_jax.evaluation.effort import Effort
from ape_jax.evaluation.intervals import Interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class Control:
    """Returns of an ensemble and of its clones, named by observer and deployment."""

    pe_return: Interval
    worst_expert: Interval
    greedy_experts: Interval
    """Mean over the experts, each taking its most probable, or mean, actions."""
    worst_greedy_expert: Interval
    clones: dict[str, Interval]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteRow:
    """One preset: its ensemble, as in ``Control``, and two controls."""

    preset: str
    env: str
    config: dict[str, Any]
    effort: Effort
    seeds: int
    num_experts: int
    pe_return: Interval
    worst_expert: Interval
    greedy_experts: Interval
    worst_greedy_expert: Interval
    clones: dict[str, Interval]
    dead_experts: int
    """Collapsed experts, over all seeds."""
    beta0_return: Interval
    """Return of the ensemble without an observer."""
    price: Interval | None
    """Share of the return without an observer, from that of a random policy, that the ensemble
    gives up. None where training without an observer is no better than random."""
    threats: tuple[ThreatRow, ...]
    """The strongest attack of each threat model."""
    skipped: dict[str, str]
    """Observers that could not run, with the reason."""
    random_return: float
    beta0_control: Control
    single_expert_control: Control
    single_beta: float
    """β of the control with one expert, chosen so that it costs as much as the ensemble."""
    control_p_value: float | None
    """The p-value of an exact permutation test: greedy clone of the ensemble against that of one
    expert. None where there is one seed."""


@dataclasses.dataclass(frozen=True)
class Suite:
    """The content of ``suite.json``."""

    rows: tuple[SuiteRow, ...]
