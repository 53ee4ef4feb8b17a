"""The cost of a compiled program: kernels, bytes, cycles, and messages between devices."""

import math
import re
from collections import Counter
from typing import NamedTuple

from benchmarks.aot.hlo import Execution, Module
from benchmarks.aot.syntax import ArrayShape, Computation, Operation

LAUNCH_SECONDS = 2e-6
"""Time from the start of one kernel to the start of the next on a GPU, at least."""
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "reduce-scatter",
    "collective-permute",
    "collective-broadcast",
)
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "add-dependency",
}
_SLICES = {"dynamic-slice", "slice", "gather"}
SORT_TILE = 2048
"""Elements that one kernel of a sort keeps in shared memory."""


class Cost(NamedTuple):
    """The cost of one run of a program."""

    kernels: int
    """Operations that are started."""
    bytes: int
    """Bytes that operations read and write in the main memory."""
    seconds: float
    """Kernels one after another on a GPU; cycles by the clock on a TPU."""
    collectives: list[dict]
    """Messages between devices in loops: kind, bytes and count."""
    collectives_at_end: list[dict]
    """The same outside of loops."""
    cycles: int | None = None
    """Cycles of a TPU: of each operation its estimate or its schedule, whichever is longer."""
    estimated_cycles: int | None = None
    scheduled_cycles: int | None = None


def of_gpu(module: Module, bandwidth: float) -> Cost:
    """Each kernel takes the time of its launch or of its bytes, whichever is longer."""
    kernels, total, seconds = 0, 0, 0.0
    for execution in module.executed:
        count = _launches(module, execution.operation)
        nbytes = _traffic(module, execution)
        kernels += execution.times * count
        total += execution.times * nbytes
        seconds += execution.times * max(count * LAUNCH_SECONDS, nbytes / bandwidth)
    return Cost(kernels, total, seconds, *_collectives(module))


def of_tpu(module: Module, clock: float, scheduled: dict[str, int]) -> Cost:
    """Each operation takes its estimate or its schedule, whichever is longer.

    ``scheduled`` holds the lengths of schedules by the names of operations.
    """
    kernels, total, cycles = 0, 0, [0, 0, 0]
    for execution in module.executed:
        operation = execution.operation
        estimate = operation.number("estimated_cycles") or 0
        # Operations on single numbers without an estimate run beside the others.
        if estimate or operation.opcode in ("fusion", "custom-call", "gather", "scatter", "sort"):
            kernels += execution.times
            total += execution.times * _traffic(module, execution)
        length = scheduled.get(operation.name, 0)
        for place, number in enumerate((max(estimate, length), estimate, length)):
            cycles[place] += execution.times * number
    return Cost(kernels, total, cycles[0] / clock, *_collectives(module), *cycles)


def _collectives(module: Module) -> tuple[list[dict], list[dict]]:
    found: tuple[Counter, Counter] = Counter(), Counter()
    for operation, _, times, loops in module.executed:
        kind = operation.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            found[not loops][kind, sum(x.nbytes for x in operation.arrays)] += times
    inside, outside = (
        [{"kind": kind, "bytes": size, "count": n} for (kind, size), n in sorted(counter.items())]
        for counter in found
    )
    return inside, outside


def _launches(module: Module, operation: Operation) -> int:
    """Kernels that an operation of a GPU's program starts."""
    if operation.opcode in _FREE or operation.opcode.endswith("-done"):
        return 0
    sorts = [operation] if operation.opcode == "sort" else []
    if operation.opcode == "fusion":
        inside = module.computations[operation.called("calls") or ""]
        sorts = [x for x in inside.operations.values() if x.opcode == "sort"]
    return sum(map(_kernels_of_sort, sorts)) if sorts else 1


def _kernels_of_sort(operation: Operation) -> int:
    """Kernels of XLA's bitonic sort.

    A stage compares elements at distances that halve. Comparisons within a tile share a kernel with
    those before and after them; each one across tiles has its own.
    """
    axis = re.search(r"dimensions=\{(\d+)\}", operation.attributes)
    length = operation.arrays[0].dims[int(axis[1]) if axis else 0]
    stages = math.ceil(math.log2(max(length, 2)))
    tile = min(SORT_TILE, 2**stages)
    kernels, in_tile = 0, False
    for stage in range(stages):
        for power in range(stage, -1, -1):
            distance = 2 ** (stage + 1) - 1 if power == stage else 2**power
            if distance < tile:
                in_tile = True
            else:
                kernels += 1 + in_tile
                in_tile = False
    return kernels + in_tile


def _traffic(module: Module, execution: Execution) -> int:
    """Bytes that an operation reads and writes, in full except for slices of larger arrays."""
    operation, computation = execution.operation, execution.computation
    if operation.opcode in _FREE or operation.opcode.endswith("-done"):
        return 0
    operands = [computation.operations[x] for x in operation.operands]
    if operation.opcode == "fusion":
        inside = module.computations[operation.called("calls") or ""]
        read = sum(
            min(_size(given), _read(inside, parameter))
            for given, parameter in zip(operands, inside.parameters, strict=True)
        )
        return read + _written(inside, operation)
    if operation.opcode in _SLICES:
        return 2 * _size(operation)
    if operation.opcode == "dynamic-update-slice":
        return 2 * _size(operands[1])
    if operation.opcode == "copy-start":
        return 2 * _size(operands[0])
    if "__cublas" in operation.attributes:  # The last result is room for its own use.
        return sum(map(_size, operands)) + sum(map(_in_memory, operation.arrays[:-1]))
    return sum(map(_size, operands)) + _size(operation)


def _read(inside: Computation, operation: Operation) -> int:
    """Bytes that a fused computation reads of one of its parameters."""
    total = 0
    for user in inside.users.get(operation.name, []):
        is_first = user.operands[0] == operation.name
        if user.opcode == "bitcast":
            total += _read(inside, user)
        elif user.opcode in _SLICES and is_first:
            total += _logical(user)
        elif user.opcode == "dynamic-update-slice" and is_first:
            pass  # The rest of the array stays where it is.
        elif user.opcode == "scatter" and is_first:
            total += _logical(inside.operations[user.operands[-1]])
        else:
            return _logical(operation)
    return min(total, _logical(operation))


def _written(inside: Computation, operation: Operation) -> int:
    root = inside.root
    results = [inside.operations[x] for x in root.operands] if root.opcode == "tuple" else [root]
    total = 0
    for result, array in zip(results, operation.arrays, strict=False):
        while result.opcode == "bitcast":
            result = inside.operations[result.operands[0]]
        size = _in_memory(array)
        if result.opcode == "dynamic-update-slice":
            size = min(size, _logical(inside.operations[result.operands[1]]))
        elif result.opcode == "scatter":
            size = min(size, _logical(inside.operations[result.operands[-1]]))
        total += size
    return total


def _size(operation: Operation) -> int:
    return sum(map(_in_memory, operation.arrays))


def _logical(operation: Operation) -> int:
    return sum(x.nbytes for x in operation.arrays)


def _in_memory(array: ArrayShape) -> int:
    """Bytes in the main memory: none of an array that a TPU keeps on the chip, in VMEM or SMEM."""
    return 0 if "S(" in array.layout else array.nbytes
