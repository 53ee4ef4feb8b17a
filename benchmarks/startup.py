"""Seconds from the start of ``ape-jax train`` to its first finished update.

It is measured with an empty folder for compiled programs, and with the folder that such a run left.
Each run is a fresh process that does what the command does.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks import common

CHILD = """
import json, sys, time
started = float(sys.argv[1])
began = time.time()
import jax
from ape_jax import cli
from ape_jax.training import trainer
imported = time.time()
compiling = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: compiling.append((event.rsplit("/", 1)[-1], seconds))
)
first = []
run = trainer.Trainer.chunks
def noted(self, *arguments, **options):
    for chunk in run(self, *arguments, **options):
        if not first:
            first.append((time.time(), len(compiling)))
        yield chunk
trainer.Trainer.chunks = noted
code = 0
try:
    cli.main(["train", "--num-updates", "1", "--out", sys.argv[2]])
except SystemExit as stop:
    code = stop.code
finished, events = first[0]
def sum_of(ends):
    return sum(seconds for event, seconds in compiling[:events] if event.endswith(ends))
print(json.dumps({
    "interpreter_seconds": began - started,
    "import_seconds": imported - began,
    "compile_seconds": sum_of("backend_compile_duration"),
    "trace_seconds": sum_of(("jaxpr_trace_duration", "jaxpr_to_mlir_module_duration")),
    "first_update_seconds": finished - started,
}))
sys.exit(code)
"""
"""The program of a fresh process. JAX reports the seconds of compiling until the first update; they
include reading a program from the folder."""

PARTS = ("interpreter", "import", "trace", "compile")


def start(cache: Path) -> dict[str, float]:
    """One run in a fresh process, with its compiled programs in a folder."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    with tempfile.TemporaryDirectory() as out:
        started = time.time()
        finished = subprocess.run(
            [sys.executable, "-c", CHILD, str(started), f"{out}/run"],
            env=environment,
            capture_output=True,
            text=True,
        )
        process_seconds = time.time() - started
    if finished.returncode:
        raise RuntimeError(f"ape-jax train failed:\n{finished.stderr}")
    return json.loads(finished.stdout.splitlines()[-1]) | {"process_seconds": process_seconds}


def measure(repeats: int) -> dict:
    """Medians over repeats; each has a cold start and then a warm one."""
    runs: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            for name in runs:
                runs[name].append(start(Path(cache)))
    rows = []
    for name, found in runs.items():
        totals = [run["first_update_seconds"] for run in found]
        rows.append(
            {
                "cache": name,
                **{key: median(run[key] for run in found) for key in found[0]},
                "spread_first_update_seconds": [min(totals), max(totals)],
            }
        )
    return {"device": common.device(), "repeats": repeats, "rows": rows}


def draw(rows: list[dict]):
    """Where the time goes until the first update."""
    figure, (axes,) = common.axes_of(height=2.4)
    colours = (common.CEILING, common.OURS, common.COMPILED, common.EAGER)
    left = [0.0] * len(rows)
    names = [row["cache"] for row in rows]
    for part, colour in zip(PARTS, colours, strict=True):
        seconds = [row[f"{part}_seconds"] for row in rows]
        axes.barh(names, seconds, left=left, color=colour, label=part)
        left = [before + own for before, own in zip(left, seconds, strict=True)]
    rest = [row["first_update_seconds"] - before for row, before in zip(rows, left, strict=True)]
    axes.barh(names, rest, left=left, color="#cccccc", label="rest")
    axes.invert_yaxis()
    axes.set_xlabel("seconds until the first update is finished")
    axes.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    return figure


def main(arguments: list[str] | None = None) -> None:
    """Measure, write, print."""
    out, effort, console = common.options(__doc__, arguments)
    with console.status("starting ape-jax train, cold and warm"):
        result = measure(effort.repeats if effort == common.FULL else 1)
    columns = {"cache": "cache", "first update s": "first_update_seconds"}
    columns |= {f"{part} s": f"{part}_seconds" for part in (*PARTS, "process")}
    table = common.table_of(result["rows"], columns, "From process start to the first update")
    common.publish(result, draw(result["rows"]), table, out, console)


if __name__ == "__main__":
    main()
