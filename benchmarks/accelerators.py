"""Programs compiled ahead of time for accelerators, and what they would cost there.

No accelerator is needed, and nothing is run. Kernels, bytes and cycles are read from the compiled
program; every operation in a loop counts as often as the loop runs. All times follow from a model:

- GPU: kernels run one after another, and each takes 2 µs for its launch or its bytes over the
  bandwidth of the memory, whichever is longer. What a kernel computes, contention of its atomics
  and command buffers, which would make launches cheaper, are not in the model.
- TPU: operations run one after another, and each takes the cycles that the compiler estimates.
  There are no estimates for gathers, scatters and Pallas kernels.

A loop that may end early counts up to its bound. Install the compilers with
``pip install ".[aot]"``.
"""

import argparse
from importlib import metadata
from pathlib import Path

from rich.console import Console

from benchmarks import aot, common
from benchmarks.aot.programs import PROGRAMS, SHARDED_PROGRAMS
from benchmarks.aot.targets import TARGETS

RATCHET = [("pg-tabular-1024", "h100"), ("pg-tabular-1024", "v5e"), ("ppo-cartpole", "h100")]
"""Programs whose costs may not grow."""
COLUMNS = {
    "program": "program",
    "target": "target",
    "kernels": "kernels",
    "MB": "megabytes",
    "cycles": "cycles",
    "updates / s": "updates_per_second_estimate",
    "memory, MB": "memory_megabytes",
    "collectives": "collectives_text",
    "compile s": "compile_seconds",
}


def pairs(programs: list[str], targets: list[str]) -> list[tuple[str, str]]:
    """Programs with the targets that they are for: one chip, or several."""
    return [
        (program, target)
        for program in programs
        for target in targets
        if (program in PROGRAMS) == (TARGETS[target].num_chips == 1)
    ]


def versions() -> dict[str, str]:
    """The versions of the compilers."""
    names = ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "nvidia-cuda-nvcc")
    found = {x.metadata["Name"]: x.version for x in metadata.distributions()}
    return {name: found[name] for name in names if name in found}


def shown(row: dict) -> dict:
    """A row as the table shows it."""
    collectives = ", ".join(
        f"{x['count']:g} {x['kind']} of {x['bytes']:,}" for x in row["collectives"]
    )
    return row | {
        "megabytes": row["bytes"] / 1e6,
        "memory_megabytes": row["memory_bytes"] / 1e6,
        "cycles": None if row["cycles"] is None else float(row["cycles"]),
        "collectives_text": collectives or None,
    }


def main(arguments: list[str] | None = None) -> None:
    """Compile, count, write, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    every = PROGRAMS | SHARDED_PROGRAMS
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON")
    parser.add_argument("--quick", action="store_true", help="three programs alone")
    parser.add_argument("--programs", default=",".join(every), metavar="NAME,…")
    parser.add_argument("--targets", default=",".join(TARGETS), metavar="NAME,…")
    given = parser.parse_args(arguments)
    programs, targets = given.programs.split(","), given.targets.split(",")
    for name, known in [*((x, every) for x in programs), *((x, TARGETS) for x in targets)]:
        if name not in known:
            parser.error(f"{name!r} is none of {', '.join(known)}")
    console = Console(width=130)
    result: dict = {"versions": versions(), "rows": []}
    chosen = RATCHET if given.quick else pairs(programs, targets)
    for program, target in common.track(chosen, "compiling", console):
        result["rows"].append(aot.row_of(program, target))
        common.write(result, given.out)
    rows = [shown(row) for row in result["rows"]]
    console.print(common.table_of(rows, COLUMNS, "One update, by the compiler's estimate"))
    console.print(f"wrote {given.out}", highlight=False)


if __name__ == "__main__":
    main()
