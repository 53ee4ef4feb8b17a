"""Compile one program for one target, and print its row of the results."""

import json
import sys
import time
from pathlib import Path

import jax

from benchmarks.aot import cost, schedule
from benchmarks.aot.hlo import Module
from benchmarks.aot.programs import trace
from benchmarks.aot.targets import TARGETS, Target


def compile_and_count(program: str, name: str, folder: str) -> dict:
    """The row; all numbers but the memory are those of one update.

    A TPU's compiler writes its schedules to the folder.
    """
    # Nothing is taken from earlier runs.
    jax.config.update("jax_enable_compilation_cache", False)
    target = TARGETS[name]
    started = time.perf_counter()
    traced = trace(program, target)
    compiled, options = compile_program(traced.lowered, target)
    seconds = time.perf_counter() - started
    module = Module(compiled.as_text())
    if target.platform == "gpu":
        found = cost.of_gpu(module, target.bandwidth)
    else:
        scheduled = schedule.lengths(Path(folder), module)
        found = cost.of_tpu(module, target.clock, scheduled)
    count = traced.num_updates
    memory = compiled.memory_analysis()
    return {
        "program": program,
        "target": name,
        "kernels": round(found.kernels / count),
        "bytes": round(found.bytes / count),
        "cycles": found.cycles and round(found.cycles / count),
        "estimated_cycles": found.estimated_cycles and round(found.estimated_cycles / count),
        "scheduled_cycles": found.scheduled_cycles and round(found.scheduled_cycles / count),
        "updates_per_second_estimate": count / found.seconds,
        "memory_bytes": memory.temp_size_in_bytes
        + memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes,
        "collectives": [x | {"count": x["count"] / count} for x in found.collectives],
        "collectives_at_end_of_chunk": found.collectives_at_end,
        "loops_counted_at_their_bound": module.loops_of_kind("bound"),
        "loops_of_unknown_length": module.loops_of_kind("unknown"),
        "compiler_options": options,
        "compile_seconds": round(seconds, 1),
    }


def compile_program(
    lowered: jax.stages.Lowered, target: Target
) -> tuple[jax.stages.Compiled, dict]:
    """The compiled program, and the options that it needed.

    Without a GPU nothing is tuned, and the default tiles of Triton's products do not fit all
    shapes. Such a program is compiled with products by cuBLAS.
    """
    try:
        return lowered.compile(), {}
    except jax.errors.JaxRuntimeError as error:
        if target.platform != "gpu" or "tile" not in str(error):
            raise
        options = {"xla_gpu_enable_triton_gemm": False}
        return lowered.compile(compiler_options=options), options


if __name__ == "__main__":
    print(json.dumps(compile_and_count(*sys.argv[1:])))
