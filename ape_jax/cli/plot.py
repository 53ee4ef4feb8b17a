"""``ape-jax plot``: learning curves of runs, also while they train."""

from rich.console import Console

from ape_jax.cli.options import PlotOptions
from ape_jax.cli.output import prepare, say
from ape_jax.reporting import figures
from ape_jax.runs.metrics import read_updates
from ape_jax.types import SettingError


def run(options: PlotOptions, console: Console) -> int:
    """Read the metrics, draw, write."""
    del console
    if not options.runs:
        raise SettingError("runs must name at least one; got none")
    out = options.out or options.runs[0] / "curves.png"
    if out.suffix not in (".png", ".pdf", ".svg"):
        raise SettingError(f"out must end in .png, .pdf or .svg; got {out}")
    if out.is_dir():
        raise SettingError(f"out must be a file; got the directory {out}")
    found = {}
    for path in options.runs:
        rows = read_updates(path / "metrics.jsonl")
        if not rows:
            raise SettingError(f"run must have finished its first updates; {path} has none yet")
        found[path.name if path.name not in found else str(path)] = rows
    prepare(out.parent, "file")
    figures.save_figure(figures.run_curves(found), out)
    say(Console(), f"figure: {out}")
    return 0
