"""``ape-jax reproduce``: the paper's table and figures."""

import dataclasses
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import TaskID

from ape_jax.cli.output import INTERRUPTED, prepare, say
from ape_jax.evaluation import reproduce
from ape_jax.reporting import tables
from ape_jax.training.trainer import Chunk, describe_returns, progress_bar
from ape_jax.types import SettingError


@dataclasses.dataclass(frozen=True)
class ReproduceOptions:
    """Reproduce the paper's Table 1 and Figures 3 and 4, with the observers that it left out."""

    seeds: int | None = None
    """Ensembles of each kind: 10, or 3 with --quick, if not given."""
    quick: bool = False
    """A first look in about a minute: 400 updates at most, 100,000 demonstration steps."""
    out: Path = Path("runs/reproduce")
    """Directory of tables and figures; those of an earlier reproduction are replaced."""


def run(options: ReproduceOptions, console: Console) -> int:
    """Make the rows, and write table and figures."""
    scale = reproduce.Scale()
    if options.quick:
        scale = reproduce.Scale(seeds=3, max_updates=400, num_demonstrations=100_000)
    if options.seeds is not None:
        scale = dataclasses.replace(scale, seeds=options.seeds)
    if scale.seeds < 1:
        raise SettingError(f"seeds must be at least 1; got {scale.seeds}")
    out = prepare(options.out)
    if (out / "metrics.jsonl").exists():
        raise SettingError(f"out must not hold a training run; {out} does. Choose another --out")
    for name in reproduce.FIGURES:
        (out / name).unlink(missing_ok=True)

    started = time.monotonic()
    reproduction = reproduce.Reproduction(scale)
    horizon = reproduction.task.world.horizon
    rows: list[reproduce.Row] = []
    code = 0
    with progress_bar(console) as progress:
        bars: dict[str, TaskID] = {}

        def report(name: str, chunk: Chunk | None) -> None:
            if chunk is None:
                bars[name] = progress.add_task(
                    reproduce.LABELS[name], total=None, returns="compiling"
                )
                return
            progress.update(
                bars[name],
                total=chunk.num_updates,
                completed=chunk.num_done,
                returns=describe_returns(chunk.metrics),
            )

        try:
            for row in reproduction.rows(report):
                rows.append(row)
                progress.update(
                    bars[row.name],
                    total=max(row.num_updates),
                    completed=max(row.num_updates),
                    returns=f"PE {np.mean(row.returns.pe):.2f}  "
                    f"BC greedy {np.mean(row.returns.bc_greedy):.2f}",
                )
                content = reproduce.table_json(rows, scale, horizon, started)
                reproduce.write_table(out, content)
            drawing = progress.add_task("figures", total=1, returns="")
            reproduction.draw(rows, out)
            progress.update(drawing, completed=1)
        except KeyboardInterrupt:
            if not rows:
                raise
            code = INTERRUPTED
    content = reproduce.table_json(rows, scale, horizon, started)
    reproduce.write_table(out, content)
    reproduce.write_settings(out, rows)

    stdout = Console()
    header, lines = tables.table1_cells(content, reproduce.LABELS)
    title = f"Table 1: returns, mean ± std over {scale.seeds} seed(s)"
    lines = [tables.narrow(line) for line in lines]
    stdout.print(tables.rich_table(title, tables.narrow(header), lines))
    say(stdout, f"{tables.EXPLANATION}\n{tables.PAPER_NOTE}")
    finished = (
        "" if code == 0 else f"interrupted after {len(rows)} of {len(reproduce.LABELS)} rows; "
    )
    say(stdout, f"{finished}{content['wall_seconds']:.0f} s; files in {out}")
    return code
