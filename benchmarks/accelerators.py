"""Programs compiled ahead of time for accelerators, and what they would cost there.

No accelerator is needed, and nothing is run. Kernels, bytes and cycles are read from the compiled
programs; an operation in a loop counts as often as the loop turns, up to its bound where the loop
may end early. Times follow from a model, and say what a program has to do, not what it will reach:

- GPU: kernels run one after another. Each takes 2 µs for its launch, or its bytes over the
  bandwidth of the memory, whichever is longer. What a kernel computes, contention of its atomics
  and command buffers, which would make launches cheaper, are not in the model.
- TPU: operations run one after another. Each takes the cycles that the compiler estimates, or the
  length of its final schedule, whichever is longer. An estimate is at least 1,824 cycles for most
  operations, and there is none for gathers, scatters and Pallas kernels. A schedule does not
  contain waiting for memory.

Install the compilers with ``pip install ".[aot]"``.
"""

import argparse
from importlib import metadata
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import aot, common
from benchmarks.aot.cost import LAUNCH_SECONDS
from benchmarks.aot.programs import PROGRAMS, SHARDED_PROGRAMS
from benchmarks.aot.targets import TARGETS

RATCHET = [("pg-tabular-1024", "h100"), ("pg-tabular-1024", "v5e"), ("ppo-cartpole", "h100")]
"""Programs with their targets that ``--quick`` compiles, and whose costs continuous integration
compares with the recorded ones."""
COMPILERS = ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "nvidia-cuda-nvcc")
COLUMNS = {
    "program": "program",
    "target": "target",
    "kernels": "kernels",
    "MB": "megabytes",
    "cycles": "cycles",
    "estimate": "estimated_cycles",
    "schedule": "scheduled_cycles",
    "updates / s": "updates_per_second_estimate",
    "memory, MB": "memory_megabytes",
    "collectives": "messages",
    "compile, s": "compile_seconds",
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
    """The versions of the compilers that are installed."""
    installed = {x.metadata["Name"]: x.version for x in metadata.distributions()}
    return {name: installed[name] for name in COMPILERS if name in installed}


def model() -> dict:
    """The numbers with which counts become times."""
    return {
        "launch_seconds": LAUNCH_SECONDS,
        "bytes_per_second": {name: x.bandwidth for name, x in TARGETS.items() if x.bandwidth},
        "cycles_per_second": {name: x.clock for name, x in TARGETS.items() if x.clock},
    }


def table_of(rows: list[dict]) -> Table:
    """All rows, in larger units."""
    shown = [
        row
        | {
            "megabytes": row["bytes"] / 1e6,
            "memory_megabytes": row["memory_bytes"] / 1e6,
            "messages": ", ".join(
                f"{x['count']:g} {x['kind']} of {x['bytes']:,} B" for x in row["collectives"]
            ),
        }
        | {name: row[name] and float(row[name]) for name in row if name.endswith("cycles")}
        for row in rows
    ]
    return common.table_of(shown, COLUMNS, "One update by the compiler's estimate; nothing was run")


def main(arguments: list[str] | None = None) -> None:
    """Compile, count, write, print."""
    every = PROGRAMS | SHARDED_PROGRAMS
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON")
    parser.add_argument("--quick", action="store_true", help="the programs of the checks alone")
    for option, known in (("--programs", every), ("--targets", TARGETS)):
        parser.add_argument(
            option,
            type=lambda text: text.split(","),
            default=list(known),
            metavar="NAME,…",
            help=", ".join(known),
        )
    given = parser.parse_args(arguments)
    for name in given.programs:
        if name not in every:
            parser.error(f"programs must be some of {', '.join(every)}; got {name!r}")
    for name in given.targets:
        if name not in TARGETS:
            parser.error(f"targets must be some of {', '.join(TARGETS)}; got {name!r}")
    console = Console(width=150)
    chosen = RATCHET if given.quick else pairs(given.programs, given.targets)
    result: dict = {"versions": versions(), "model": model(), "rows": []}
    for program, target in common.track(chosen, "compiling", console):
        result["rows"].append(aot.row_of(program, target))
        common.write(result, given.out)
    console.print(table_of(result["rows"]))
    console.print(f"wrote {given.out}", highlight=False)


if __name__ == "__main__":
    main()
