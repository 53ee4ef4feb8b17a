"""The settings of an audit."""

import dataclasses

ALL = "all"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditSettings:
    """Settings of an audit."""

    observers: str = ALL
    """Names of observers, with commas between them."""
    threats: str = ALL
    """Names of threat models, with commas between them: what attackers may use. Observers that need
    more are left out."""
    defences: str | None = None
    """Names of ensembles to make and compare with, with commas between them. If not given: all
    without a run, none with one."""
    seeds: int | None = None
    """Seeds to audit. If not given: all seeds of the run; without a run 10, or 3 with --quick; 5
    for a file of demonstrations."""
    first_seed: int = 0
    """Number of the first seed, where there is no run. A run has its own seeds."""
    steps: int | None = None
    """Demonstration steps of each seed. If not given: 1,000,000, or 100,000 with --quick."""
    quick: bool = False
    """A first look: fewer seeds and demonstrations, shorter training."""
