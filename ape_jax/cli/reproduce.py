"""``ape-jax reproduce``: the paper's table and figures."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import OmegaConf
from rich.console import Console

from ape_jax.cli.options import ReproduceOptions
from ape_jax.cli.output import prepare, save_steps, say, say_finished
from ape_jax.evaluation import records, reproduce
from ape_jax.evaluation.progress import Progress
from ape_jax.evaluation.reproduce import LABELS, Scale, Table1, Trained
from ape_jax.reporting import reproduction, tables
from ape_jax.reporting.progress import progress_bars
from ape_jax.runs.metrics import write_text
from ape_jax.types import SettingError


def run(options: ReproduceOptions, console: Console) -> int:
    """Make the rows, and write table and figures."""
    scale = reproduce.QUICK if options.quick else Scale()
    if options.seeds is not None:
        scale = dataclasses.replace(scale, seeds=options.seeds)
    if scale.seeds < 1:
        raise SettingError(f"seeds must be at least 1; got {scale.seeds}")
    out = prepare(options.out)
    if (out / "metrics.jsonl").exists():
        raise SettingError(f"out must not hold a training run; {out} does. Choose another --out")
    for name in reproduction.FIGURES:
        (out / name).unlink(missing_ok=True)

    started = time.monotonic()
    trained: list[Trained] = []

    def steps() -> Iterator[Table1]:
        for one in reproduce.train_rows(scale, progress):
            trained.append(one)
            yield reproduce.table1(trained, scale, time.monotonic() - started)
        progress(Progress("figures", 0, 1))
        reproduction.draw(trained, scale, out)
        progress(Progress("figures", 1, 1))
        yield reproduce.table1(trained, scale, time.monotonic() - started)

    with progress_bars(console) as progress:
        code, (*_, table) = save_steps(steps(), lambda table: _write(table, out))
    _write_settings(trained, out)
    _show(table, out, code)
    return code


def _write(table: Table1, out: Path) -> None:
    """Write ``table1.json`` and ``table1.md``."""
    records.write(out / "table1.json", table)
    text = tables.markdown_table(*tables.table1_cells(table))
    write_text(out / "table1.md", "\n\n".join((text, tables.EXPLANATION, tables.PAPER_NOTE)) + "\n")


def _write_settings(trained: Sequence[Trained], out: Path) -> None:
    """Write ``config.yaml``: each row's settings, named as ``ape-jax train`` names them.

    The halted rows have the optimal row's; ``table1.json`` says where each of their seeds stopped.
    """
    content = OmegaConf.create({one.row.name: one.config.to_flat() for one in trained})
    write_text(out / "config.yaml", OmegaConf.to_yaml(content))


def _show(table: Table1, out: Path, code: int) -> None:
    stdout = Console()
    header, lines = tables.table1_cells(table)
    title = f"Table 1: returns, mean ± std over {table.seeds} seed(s)"
    lines = [tables.narrow(line) for line in lines]
    stdout.print(tables.rich_table(title, tables.narrow(header), lines))
    say(stdout, f"{tables.EXPLANATION}\n{tables.PAPER_NOTE}")
    if code:
        say(stdout, f"{len(table.rows)} of {len(LABELS)} rows are finished")
    say_finished(stdout, code, table.wall_seconds, out)
