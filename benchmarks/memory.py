"""Memory of a chunk of updates: what the compiler plans, and what the process takes.

It is measured over environments and horizons, for two experts with tabular heads, and over the
length of the chunk, with which only the metrics may grow.
"""

import functools
import json
import subprocess
import sys
from pathlib import Path

import jax

from ape_jax import algorithms
from ape_jax.algorithms import pg
from ape_jax.algorithms.task import make_task
from ape_jax.config import PGConfig, PGHypers
from ape_jax.envs import GridWorld
from benchmarks import common

CHILD = "--child"
BLOCKS, HORIZONS = (64, 256, 1024, 4096), (50, 100, 200)
CHUNKS = (1, 10, 100, 1000)
CHUNK = 10
STATUS = Path("/proc/self/status")


def compile_chunk(block: int, horizon: int, chunk: int):
    """The compiled updates, and a state to start from."""
    task = make_task(PGConfig(envs_per_expert=block), GridWorld(horizon=horizon))
    state = pg.create_state(jax.random.key(0), task.networks, PGHypers())
    return common.compiled_chunk(algorithms.updates, task, state, PGHypers(), chunk), state


@functools.cache
def plan(block: int, horizon: int, chunk: int) -> dict[str, int]:
    """Bytes that the compiler plans for a chunk."""
    compiled, _ = compile_chunk(block, horizon, chunk)
    memory = compiled.memory_analysis()
    _, metrics = compiled.out_info
    return {
        "envs_per_expert": block,
        "horizon": horizon,
        "chunk": chunk,
        "temp_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "metrics_bytes": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(metrics)),
    }


def run(block: int, horizon: int) -> int | None:
    """Bytes by which the process's peak grows over a chunk; None where the system does not say."""
    compiled, state = compile_chunk(block, horizon, CHUNK)
    try:
        # Sets the recorded peak to the present size, because compiling needed more.
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    before = _status("VmRSS")
    jax.block_until_ready(compiled(jax.tree.leaves(state), PGHypers()))
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = STATUS.read_text().splitlines()
    return next(1024 * int(x.split()[1]) for x in lines if x.startswith(f"{name}:"))


def measured(block: int, horizon: int) -> int | None:
    """The same in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.memory", CHILD, str(block), str(horizon)]
    return json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def measure(
    blocks: tuple[int, ...], horizons: tuple[int, ...], chunks: tuple[int, ...], track
) -> dict:
    """Rows by size, with measurements on a CPU; and rows by the length of the chunk."""
    rows = []
    for block, horizon in track([(x, y) for x in blocks for y in horizons], "sizes"):
        peak = None if common.on_gpu() else measured(block, horizon)
        steps = 2 * PGConfig().num_experts * block * horizon
        row = plan(block, horizon, CHUNK) | {"peak_growth_bytes": peak}
        rows.append(row | {"temp_bytes_per_step": row["temp_bytes"] / steps})
    by_chunk = [plan(blocks[0], horizons[0], chunk) for chunk in track(chunks, "chunks")]
    return {"device": common.device(), "rows": rows, "chunks": by_chunk}


def draw(result: dict):
    """Bytes by environment steps of an update, and by the length of the chunk."""
    figure, (left, right) = common.axes_of(2)
    rows, chunks = result["rows"], result["chunks"]
    steps = [2 * 2 * row["envs_per_expert"] * row["horizon"] for row in rows]
    left.loglog(steps, [_total(row) for row in rows], "o", color=common.OURS, label="planned")
    if rows[0]["peak_growth_bytes"] is not None:
        peaks = [row["peak_growth_bytes"] for row in rows]
        left.loglog(steps, peaks, "x", color=common.EAGER, label="measured growth of the peak")
    left.set_xlabel("environment steps an update")
    left.set_ylabel("bytes")
    left.legend()
    lengths = [row["chunk"] for row in chunks]
    for name, colour in (("temp_bytes", common.OURS), ("metrics_bytes", common.COMPILED)):
        label = name.removesuffix("_bytes")
        right.loglog(lengths, [row[name] for row in chunks], "o-", color=colour, label=label)
    right.set_xlabel("updates in a chunk")
    right.legend()
    return figure


def _total(row: dict) -> int:
    return row["temp_bytes"] + row["argument_bytes"] + row["output_bytes"]


def main(arguments: list[str] | None = None) -> None:
    """Measure, write, print; or be the process that is measured."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == [CHILD]:
        print(json.dumps(run(int(arguments[1]), int(arguments[2]))))
        return
    out, effort, console = common.options(__doc__, arguments)
    sizes = (BLOCKS, HORIZONS, CHUNKS) if effort == common.FULL else ((64,), (100,), (1, 10))
    result = measure(*sizes, functools.partial(common.track, console=console))
    columns = {"B": "envs_per_expert", "T": "horizon", "planned temporaries": "temp_bytes"}
    columns |= {"bytes a step": "temp_bytes_per_step", "measured growth": "peak_growth_bytes"}
    table = common.table_of(result["rows"], columns, "Memory of ten updates, bytes")
    common.publish(result, draw(result), table, out, console)


if __name__ == "__main__":
    main()
