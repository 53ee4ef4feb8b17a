"""``ape-jax sweep``: the frontier of PE return against clone return."""

from pathlib import Path

from rich.console import Console

from ape_jax.cli.options import SweepOptions
from ape_jax.cli.output import prepare, save_steps, say, say_finished
from ape_jax.evaluation import records
from ape_jax.evaluation.sweep import Sweep, sweep_steps
from ape_jax.reporting import figures, tables
from ape_jax.reporting.progress import progress_bars
from ape_jax.runs.metrics import write_text
from ape_jax.types import SettingError


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
