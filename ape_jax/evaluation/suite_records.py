"""The records of the suite: what is measured of every preset."""

import dataclasses
from typing import Any

from ape_jax.evaluation.intervals import Interval


@dataclasses.dataclass(frozen=True)
class SuiteEffort:
    """How much is measured. Hashable."""

    num_steps: int = 256_000
    """Demonstration steps of each seed."""
    fit_updates: int = 1000
    """Updates of every clone that is a network, and of the posterior's classifier."""
    num_episodes: int = 256
    """Episodes behind each return that is sampled."""


QUICK = SuiteEffort(num_steps=25_600, fit_updates=100, num_episodes=64)
"""A first look."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Control:
    """Returns of an ensemble and of its clones."""

    pe_return: Interval
    worst_expert: Interval
    greedy_experts: Interval
    """Mean over the experts, each taking its most probable, or mean, actions."""
    worst_greedy_expert: Interval
    clones: dict[str, Interval]
    """Returns of clones, by observer and deployment."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteRow:
    """One preset: its ensemble, as in ``Control``, and two controls."""

    preset: str
    env: str
    config: dict[str, Any]
    """Every setting, as in ``config.yaml``."""
    effort: SuiteEffort
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
    random_return: float
    """Return of a uniformly random policy."""
    beta0_control: Control
    """Trained without an observer."""
    single_expert_control: Control
    """Trained with one expert."""
    steps_per_second: float | None
    """Environment steps of training; None where the run was too short to leave compiling out."""


@dataclasses.dataclass(frozen=True)
class Suite:
    """The content of ``suite.json``."""

    rows: tuple[SuiteRow, ...]
