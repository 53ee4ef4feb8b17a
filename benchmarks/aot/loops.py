"""The numbers of turns of the loops in a compiled program."""

import re
from typing import Literal, NamedTuple

from benchmarks.aot.syntax import Computation, Operation

Computations = dict[str, Computation]
_COPIES = {"copy", "bitcast", "convert", "reshape", "copy-start", "copy-done", "transpose"}
_COMPARED = {"LT": 0, "GT": 0, "NE": 0, "LE": 1, "GE": 1}
"""Turns beyond the distance between start and bound, by the comparison that a loop goes on with."""


class Element(NamedTuple):
    """A number that a loop carries, by its place in the carried tuple."""

    index: int


class TripCount(NamedTuple):
    """The number of times that the body of a loop runs."""

    count: int
    kind: Literal["known", "bound", "unknown"]
    """A bound where the loop may also end earlier; an unknown loop is counted once."""


def trip_count(computations: Computations, loop: Operation, computation: Computation) -> TripCount:
    """The number of times that a loop's body runs, from the compiler or from the loop's condition.

    A condition that also asks something else ends the loop at the bound or earlier. A counter
    whose start is not a constant is taken to start at 0.
    """
    known = re.search(r'known_trip_count"?[=:]\{"n":"(\d+)"', loop.attributes)
    if known:
        return TripCount(int(known[1]), "known")
    condition = computations[loop.called("condition") or ""]
    body = computations[loop.called("body") or ""]

    def at_start(value: int | Element | None) -> int | None:
        if isinstance(value, Element):
            init = computation.operations[loop.operands[0]]
            value = _element(computations, computation, init, value.index, None)
        return value if isinstance(value, int) else None

    root = condition.root
    while root.opcode == "fusion":
        root = computations[root.called("calls") or ""].root
    is_certain = root.opcode == "compare"
    counts = []
    for left, right, direction in _comparisons(computations, condition, condition.root, None):
        counter, other = (left, right) if isinstance(left, Element) else (right, left)
        bound = at_start(other)
        if isinstance(counter, Element) and bound is not None:
            start = at_start(counter)
            is_certain &= start is not None
            step = abs(_step(computations, body, counter) or 1)
            distance = abs(bound - (start or 0)) + _COMPARED.get(direction, 0)
            counts.append(-(-distance // step))
    if not counts:
        return TripCount(1, "unknown")
    return TripCount(min(counts), "known" if is_certain else "bound")


def _comparisons(
    computations: Computations, computation: Computation, operation: Operation, inputs
):
    """The comparisons that a condition joins: both sides and the direction of each."""
    if operation.opcode == "compare":
        direction = re.search(r"direction=(\w+)", operation.attributes)
        sides = [_scalar(computations, computation, x, inputs) for x in operation.operands]
        yield *sides, direction[1] if direction else ""
    elif operation.opcode == "fusion":
        inside = computations[operation.called("calls") or ""]
        given = [_scalar(computations, computation, x, inputs) for x in operation.operands]
        yield from _comparisons(computations, inside, inside.root, given)
    elif operation.opcode == "and" or operation.opcode in _COPIES:
        for name in operation.operands:
            yield from _comparisons(computations, computation, computation.operations[name], inputs)


def _scalar(
    computations: Computations, computation: Computation, name: str, inputs
) -> int | Element | None:
    """A whole number where it is a constant, or its place in what the loop carries."""
    operation = computation.operations[name]
    if operation.opcode == "constant":
        return int(operation.arguments) if re.fullmatch(r"-?\d+", operation.arguments) else None
    if operation.opcode in _COPIES:
        return _scalar(computations, computation, operation.operands[0], inputs)
    if operation.opcode == "get-tuple-element":
        source = computation.operations[operation.operands[0]]
        return _element(computations, computation, source, operation.number("index") or 0, inputs)
    if operation.opcode == "parameter" and inputs is not None:
        return inputs[int(operation.arguments)]
    if operation.opcode == "fusion":
        inside = computations[operation.called("calls") or ""]
        given = [_scalar(computations, computation, x, inputs) for x in operation.operands]
        return _scalar(computations, inside, inside.root.name, given)
    return None


def _element(
    computations: Computations, computation, source: Operation, index: int, inputs
) -> int | Element | None:
    if source.opcode == "parameter" and inputs is None:
        return Element(index)
    if source.opcode == "tuple":
        return _scalar(computations, computation, source.operands[index], inputs)
    return None


def _step(computations: Computations, body: Computation, element: Element) -> int | None:
    """The number that a loop adds to what it counts."""
    if body.root.opcode != "tuple":
        return None
    computation, inputs = body, None
    operation = body.operations[body.root.operands[element.index]]
    while operation.opcode in _COPIES | {"fusion", "get-tuple-element"}:
        if operation.opcode == "fusion":
            inputs = [_scalar(computations, computation, x, inputs) for x in operation.operands]
            computation = computations[operation.called("calls") or ""]
            operation = computation.root
        else:
            source = computation.operations[operation.operands[0]]
            if operation.opcode == "get-tuple-element" and source.opcode != "tuple":
                return None
            operation = source
    sides = [_scalar(computations, computation, x, inputs) for x in operation.operands]
    numbers = [x for x in sides if isinstance(x, int)]
    is_sum = operation.opcode in ("add", "subtract") and element in sides
    return numbers[0] if is_sum and numbers else None
