"""Seconds of importing, of help, and from the start of ``ape-jax train`` to its first update.

Training is measured with an empty folder for compiled programs, and with the folder that such a run
left. Each run is a fresh process that does what the command does.
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

PROGRAMS = {
    "import jax": "import jax",
    "import ape_jax": "import ape_jax",
    "from ape_jax import *": "from ape_jax import *",
    "ape-jax --help": "from ape_jax.cli import main; main(['--help'])",
    "ape-jax train --help": "from ape_jax.cli import main; main(['train', '--help'])",
}
"""Short programs, by the name that they have in the results. A star imports every public name."""

CHILD = """
import importlib, json, pathlib, sys, time, types
started, out = float(sys.argv[1]), pathlib.Path(sys.argv[2])
began = time.time()
from ape_jax import cli
compiling = []
def import_module(name):
    global imported
    module = importlib.import_module(name)
    import jax
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiling.append((time.time(), event, seconds))
    )
    imported = time.time()
    return module
cli.importlib = types.SimpleNamespace(import_module=import_module)
code = 0
sys.argv = ["ape-jax", "train", "--num-updates", "1", "--out", str(out)]
try:
    cli.main()
except SystemExit as stop:
    code = stop.code
finished = (out / "metrics.jsonl").stat().st_mtime
def sum_of(*ends):
    return sum(s for at, event, s in compiling if at < finished and event.endswith(ends))
print(json.dumps({
    "interpreter_seconds": began - started,
    "import_seconds": imported - began,
    "compile_seconds": sum_of("backend_compile_duration"),
    "trace_seconds": sum_of("jaxpr_trace_duration", "jaxpr_to_mlir_module_duration"),
    "first_update_seconds": finished - started,
}))
sys.exit(code)
"""
"""The program of a fresh process. The command imports its module last, and the only update is
finished when its metrics are written. JAX reports the seconds of tracing and compiling; compiling
includes reading a program from the folder."""

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


def seconds_of(program: str) -> float:
    """Seconds of a fresh process that runs a program."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def measure_programs(repeats: int) -> list[dict]:
    """Medians over repeats; in each, every program runs once."""
    found = [[seconds_of(program) for program in PROGRAMS.values()] for _ in range(repeats)]
    return [
        {"program": name, "seconds": median(runs), "spread_seconds": [min(runs), max(runs)]}
        for name, runs in zip(PROGRAMS, zip(*found, strict=True), strict=True)
    ]


def measure(repeats: int) -> dict:
    """Medians over repeats; each has a cold start of training and then a warm one."""
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
    programs = measure_programs(repeats)
    return {"device": common.device(), "repeats": repeats, "programs": programs, "rows": rows}


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
    with console.status("starting programs, and ape-jax train, cold and warm"):
        result = measure(effort.repeats if effort == common.FULL else 1)
    columns = {"cache": "cache", "first update s": "first_update_seconds"}
    columns |= {f"{part} s": f"{part}_seconds" for part in (*PARTS, "process")}
    table = common.table_of(result["rows"], columns, "From process start to the first update")
    programs = {"program": "program", "seconds": "seconds"}
    console.print(common.table_of(result["programs"], programs, "Start to end"))
    common.publish(result, draw(result["rows"]), table, out, console)


if __name__ == "__main__":
    main()
