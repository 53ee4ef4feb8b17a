"""``ape-jax sweep``: the frontier of PE return against clone return."""

import dataclasses
from pathlib import Path

from rich.console import Console

from ape_jax.cli.output import prepare, save_steps, say, say_finished
from ape_jax.evaluation import records
from ape_jax.evaluation.sweep import Sweep, sweep_steps
from ape_jax.reporting import figures, tables
from ape_jax.reporting.progress import progress_bars
from ape_jax.runs.metrics import write_text
from ape_jax.types import HeadName, SettingError


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


def run(options: SweepOptions, console: Console) -> int:
    """Train, and write ``sweep.json``, ``sweep.md`` and ``frontier.png``."""
    settings = vars(options) | {"betas": _betas(options.betas)}
    out = settings.pop("out")

    def save(result: Sweep) -> None:
        (out / "frontier.png").unlink(missing_ok=True)
        records.write(out / "sweep.json", result)

    with progress_bars(console) as progress:
        steps = sweep_steps(**settings, progress=progress)
        prepare(out)
        code, (*_, result) = save_steps(steps, save)
    figures.save_figure(figures.frontier(result), out / "frontier.png")
    write_text(out / "sweep.md", tables.sweep_markdown(result))
    _show(result, out, code)
    return code


def _betas(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise SettingError(
            f"betas must be numbers >= 0 with commas between them, such as 0.1,0.2; got {text!r}"
        ) from None


def _show(found: Sweep, out: Path, code: int) -> None:
    stdout = Console()
    title, lines = "PE and clone over beta", tables.sweep_lines(found)
    stdout.print(tables.rich_table(title, tables.SWEEP_HEADER, lines, 2))
    compared = tables.comparison_lines(found)
    if compared:
        title = "gap (PE - clone) of sampled training and of the exact frontier at the same PE"
        stdout.print(tables.rich_table(title, tables.COMPARISON_HEADER, compared))
    say(stdout, tables.SWEEP_NOTE)
    say_finished(stdout, code, found.wall_seconds, out)
