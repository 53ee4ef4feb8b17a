"""The options of all commands but ``train``: their flags, and their help.

Nothing here needs JAX.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from ape_jax.settings.audit import AuditSettings
from ape_jax.settings.names import HeadName


@dataclasses.dataclass(frozen=True)
class ReproduceOptions:
    """Reproduce the paper's Table 1 and Figures 3 and 4, with the observers that it left out."""

    seeds: int | None = None
    """Ensembles of each kind: 10, or 3 with --quick, if not given."""
    quick: bool = False
    """A first look in about a minute: 400 updates at most, 100,000 demonstration steps."""
    out: Path = Path("runs/reproduce")
    """Directory of tables and figures; those of an earlier reproduction are replaced."""


@dataclasses.dataclass(frozen=True)
class AuditOptions:
    """Run every observer against an ensemble, and report how well each can clone it.

    Without RUN, all defences are made on the gridworld and audited side by side.
    """

    settings: tyro.conf.OmitArgPrefixes[AuditSettings] = dataclasses.field(
        default_factory=AuditSettings
    )
    run: tyro.conf.Positional[Path | None] = None
    """A run of ape-jax train, or a file of demonstrations."""
    out: Path = Path("runs/audit")
    """Directory of tables and figures; those of an earlier audit are replaced."""


@dataclasses.dataclass(frozen=True)
class DemosOptions:
    """Write demonstrations of a trained ensemble: what observers get to see of it."""

    run: tyro.conf.Positional[Path]
    """Directory of a run that ape-jax train made."""
    out: Path
    """The .npz file. docs/demonstrations.md describes the format."""
    steps: int = 100_000
    """Number of steps. The expert is drawn anew for each episode."""
    seed: int | None = None
    """Number of one of the run's seeds; if not given, the first."""
    without_expert: bool = False
    """Leave out which expert acted, for a file that goes to an attacker."""
    minari: str | None = None
    """Also export a Minari dataset of this name, which never says which expert acted."""
    overwrite: bool = False
    """Replace the file if it is already there."""


@dataclasses.dataclass(frozen=True)
class SweepOptions:
    """Measure the cost of protection: train over beta and seeds at once, against two observers.

    On a finite MDP, exact training draws the frontier beside the sampled one.
    """

    betas: str = "0.05,0.1,0.15,0.2,0.25,0.3,0.35,0.4"
    """Weights of the observer's return, with commas between them."""
    env: str = "GridWorld-ape"
    """Any registered gymnax environment."""
    head: HeadName = "tabular"
    """Expert heads; all other settings are those of that head's recipe."""
    num_experts: int = 2
    """Expert heads in an ensemble (E)."""
    num_updates: int | None = None
    """Updates of sampled training; the recipe's if not given."""
    seeds: int = 5
    """Runs for each beta."""
    first_seed: int = 0
    """Number of the first seed."""
    out: Path = Path("runs/sweep")
    """Directory of table and figure; those of an earlier sweep are replaced."""


@dataclasses.dataclass(frozen=True)
class SuiteOptions:
    """Train ensembles and their controls in every preset's environment, and clone them all."""

    only: str | None = None
    """Names of presets or environments, with commas between them; all, if not given."""
    seeds: int = 5
    """Seeds behind every number."""
    first_seed: int = 1000
    """Number of the first seed. Presets were tuned on seeds below 1000."""
    quick: bool = False
    """A first look: a twentieth of the updates, a tenth of the demonstrations."""
    out: Path = Path("runs/suite.json")
    """The results; beside them the same as a table in Markdown and as a figure. Rows of other
    presets in this file are kept; they must be of the same seeds."""


@dataclasses.dataclass(frozen=True)
class PlotOptions:
    """Draw returns over updates: the mean over seeds, and the range of seeds."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Directories of runs, finished or not."""
    out: Path | None = None
    """The figure: .png, .pdf or .svg; curves.png in the first run, if not given."""


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """Write what is known of a finished run as one page of HTML, which needs no other file.

    A run without an audit is audited first, as by audit RUN --quick --out RUN/audit.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Directory of the run."""
    audit: Path | None = None
    """Directory of an audit of this run; RUN/audit, if not given."""
    sweep: Path | None = None
    """Directory of a sweep in the same environment; RUN/sweep if there is one, if not given."""
    out: Path | None = None
    """The page; report.html in the run, if not given."""


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Write a finished run's experts as safetensors and as a forward pass of jax.export."""

    run: Annotated[Path, tyro.conf.Positional]
    """Directory of the run."""
    out: Path
    """Directory for the files."""
    overwrite: bool = False
    """Replace the export that --out already holds."""
