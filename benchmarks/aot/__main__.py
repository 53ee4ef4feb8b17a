"""Compile one program for one target, and print its row of the results."""

import json
import sys
import time

import jax

from benchmarks.aot import cost
from benchmarks.aot.hlo import Module
from benchmarks.aot.programs import trace
from benchmarks.aot.targets import TARGETS


def compile_and_count(program: str, name: str) -> dict:
    """The row; all numbers but the memory are those of one update."""
    # Nothing is taken from earlier runs.
    jax.config.update("jax_enable_compilation_cache", False)
    target = TARGETS[name]
    started = time.perf_counter()
    traced = trace(program, target)
    compiled = traced.lowered.compile()
    seconds = time.perf_counter() - started
    module = Module(compiled.as_text())
    if target.platform == "gpu":
        found = cost.of_gpu(module, target.bandwidth)
    else:
        found = cost.of_tpu(module, target.clock)
    count = traced.num_updates
    memory = compiled.memory_analysis()
    return {
        "program": program,
        "target": name,
        "kernels": round(found.kernels / count),
        "bytes": round(found.bytes / count),
        "cycles": None if found.cycles is None else round(found.cycles / count),
        "updates_per_second_estimate": count / found.seconds,
        "memory_bytes": memory.temp_size_in_bytes
        + memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes,
        "collectives": [x | {"count": x["count"] / count} for x in found.collectives],
        "loops_counted_at_their_bound": module.loops_of_kind("bound"),
        "loops_of_unknown_length": module.loops_of_kind("unknown"),
        "compile_seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    print(json.dumps(compile_and_count(*sys.argv[1:])))
