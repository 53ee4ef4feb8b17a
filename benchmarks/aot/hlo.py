"""A reader of compiled programs, in the text form of XLA's HLO.

A program consists of computations. The first one runs once; others are bodies of loops, branches,
or the insides of fused operations. ``executed`` lists the operations that a device starts one by
one, each with the number of times that it runs.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

BYTES = {"pred": 1, "token": 0, "opaque": 0, "bf16": 2, "f16": 2, "c64": 8, "c128": 16}
"""Bytes of an element, where the digits of its type do not say how many."""
_ARRAY = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,<=]*)\](?:\{([^{}]*)\})?")
_COPIES = {"copy", "bitcast", "convert", "reshape", "copy-start", "copy-done", "transpose"}
_COMPARED = {"LT": 0, "GT": 0, "NE": 0, "LE": 1, "GE": 1}
"""Steps that a loop makes beyond the distance between start and bound, by its comparison."""


class ArrayShape(NamedTuple):
    """One array of a shape."""

    dtype: str
    dims: tuple[int, ...]
    layout: str
    """Order of the axes, tiles and memory space, such as ``1,0:T(8,128)S(1)``."""

    @property
    def nbytes(self) -> int:
        """Bytes, with those that pad the tiles of the layout."""
        size = BYTES.get(self.dtype)
        if size is None:
            size = math.ceil(int(re.findall(r"\d+", self.dtype)[0]) / 8)
        return size * math.prod(self._padded())

    def _padded(self) -> list[int]:
        order, _, rest = self.layout.partition(":")
        tile = re.match(r"T\(([\d,]+)\)", rest)
        dims = list(self.dims)
        if tile is None or not dims:
            return dims
        minor_to_major = [int(x) for x in order.split(",")]
        for axis, size in zip(minor_to_major, reversed(tile[1].split(",")), strict=False):
            dims[axis] = -(-dims[axis] // int(size)) * int(size)
        return dims


@dataclasses.dataclass(frozen=True)
class Operation:
    """One line of a computation."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    arguments: str
    """The text between the brackets."""
    attributes: str
    """The text behind the brackets."""
    is_root: bool

    @property
    def arrays(self) -> list[ArrayShape]:
        """The arrays of the result."""
        return [
            ArrayShape(dtype, tuple(int(x.lstrip("<=")) for x in dims.split(",") if x), layout)
            for dtype, dims, layout in _ARRAY.findall(self.shape)
        ]

    def called(self, attribute: str) -> str | None:
        """The name of a computation that it calls, such as the one behind ``body=``."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return found and found[1]

    def number(self, attribute: str) -> int | None:
        """A whole number among its attributes, with or without quotes."""
        found = re.search(rf'\b{attribute}"?[=:]"?(\d+)', self.attributes)
        return int(found[1]) if found else None


@dataclasses.dataclass(frozen=True)
class Computation:
    """Operations by name, in the order in which they run."""

    name: str
    operations: dict[str, Operation]

    @property
    def root(self) -> Operation:
        """The operation whose result is the computation's."""
        return next(x for x in self.operations.values() if x.is_root)

    @functools.cached_property
    def parameters(self) -> list[Operation]:
        """Its parameters, by number."""
        found = [x for x in self.operations.values() if x.opcode == "parameter"]
        return sorted(found, key=lambda x: int(x.arguments))

    @functools.cached_property
    def users(self) -> dict[str, list[Operation]]:
        """The operations that read each result."""
        found: dict[str, list[Operation]] = {}
        for operation in self.operations.values():
            for name in dict.fromkeys(operation.operands):
                found.setdefault(name, []).append(operation)
        return found


class Element(NamedTuple):
    """A number that a loop carries, by its place in the carried tuple."""

    index: int


class TripCount(NamedTuple):
    """How often the body of a loop runs."""

    count: int
    kind: Literal["known", "bound", "unknown"]
    """A bound where the loop may also end earlier; an unknown loop is counted once."""


class Execution(NamedTuple):
    """An operation that a device starts, and how often."""

    operation: Operation
    computation: Computation
    times: int
    loops: tuple[str, ...]
    """Names of the loops around it, the outermost first."""


class Module:
    """A compiled program."""

    def __init__(self, text: str):
        """Read the text of ``jax.stages.Compiled.as_text``."""
        self.computations: dict[str, Computation] = {}
        self.loops: dict[str, TripCount] = {}
        self.entry = ""
        name, operations = "", {}
        for line in text.splitlines():
            header = re.match(r"(ENTRY )?%?([\w.\-]+)\s.*\{$", line)
            if header and not line.startswith(" ") and not line.startswith("HloModule"):
                name, operations = header[2], {}
                self.entry = name if header[1] else self.entry
            elif line.startswith("}") and name:
                self.computations[name] = Computation(name, operations)
            elif (operation := _operation(line)) is not None:
                operations[operation.name] = operation
        self.executed = list(self._executed(self.computations[self.entry], 1, ()))
        """All operations of the program, except for those inside fused ones."""

    def loops_of_kind(self, kind: str) -> dict[str, int]:
        """The loops whose trip counts are of a kind, and the counts."""
        return {name: trips.count for name, trips in self.loops.items() if trips.kind == kind}

    def _executed(
        self, computation: Computation, times: int, loops: tuple[str, ...]
    ) -> Iterator[Execution]:
        for operation in computation.operations.values():
            if operation.opcode == "while":
                trips = self.loops[operation.name] = self.trip_count(operation, computation)
                inside = (*loops, operation.name)
                body = self.computations[operation.called("body") or ""]
                yield from self._executed(body, times * trips.count, inside)
                if "known_trip_count" not in operation.attributes:
                    condition = self.computations[operation.called("condition") or ""]
                    yield from self._executed(condition, times * (trips.count + 1), inside)
            elif operation.opcode == "conditional":
                branches = re.findall(
                    r"(?:true_computation|false_computation)=%?([\w.\-]+)", operation.attributes
                )
                for listed in re.findall(r"branch_computations=\{([^}]*)\}", operation.attributes):
                    branches += re.findall(r"[\w.\-]+", listed)
                runs = [list(self._executed(self.computations[x], times, loops)) for x in branches]
                yield from max(runs, key=lambda run: sum(x.times for x in run))
            elif operation.opcode in ("call", "async-start"):
                called = operation.called("to_apply") or operation.called("calls") or ""
                yield from self._executed(self.computations[called], times, loops)
            else:
                yield Execution(operation, computation, times, loops)

    def signature(self, operation: Operation, computation: Computation) -> tuple:
        """What an operation computes, without names: equal for operations with equal code."""
        inside = operation.called("calls")
        steps: tuple = ()
        if inside is not None:
            called = self.computations[inside]
            numbers = {name: number for number, name in enumerate(called.operations)}
            steps = tuple(
                (
                    x.shape,
                    x.opcode,
                    tuple(numbers[name] for name in x.operands),
                    x.arguments if x.opcode in ("parameter", "constant") else "",
                    _plain(x.attributes),
                )
                for x in called.operations.values()
            )
        shapes = tuple(computation.operations[name].shape for name in operation.operands)
        return operation.opcode, operation.shape, shapes, _plain(operation.attributes), steps

    def trip_count(self, loop: Operation, computation: Computation) -> TripCount:
        """How often a loop's body runs: as the compiler says, or as its condition compares.

        A condition that also asks something else ends the loop at the bound or earlier. A counter
        whose start is not a constant is taken to start at 0.
        """
        known = re.search(r'known_trip_count"?[=:]\{"n":"(\d+)"', loop.attributes)
        if known:
            return TripCount(int(known[1]), "known")
        condition = self.computations[loop.called("condition") or ""]
        body = self.computations[loop.called("body") or ""]

        def at_start(value: int | Element | None) -> int | None:
            if isinstance(value, Element):
                init = computation.operations[loop.operands[0]]
                value = self._element(computation, init, value.index, None)
            return value if isinstance(value, int) else None

        root = condition.root
        while root.opcode == "fusion":
            root = self.computations[root.called("calls") or ""].root
        is_certain = root.opcode == "compare"
        counts = []
        for left, right, direction in self._comparisons(condition, condition.root, None):
            counter, other = (left, right) if isinstance(left, Element) else (right, left)
            bound = at_start(other)
            if isinstance(counter, Element) and bound is not None:
                start = at_start(counter)
                is_certain &= start is not None
                step = abs(self._step(body, counter) or 1)
                distance = abs(bound - (start or 0)) + _COMPARED.get(direction, 0)
                counts.append(-(-distance // step))
        if not counts:
            return TripCount(1, "unknown")
        return TripCount(min(counts), "known" if is_certain else "bound")

    def _comparisons(self, computation: Computation, operation: Operation, inputs):
        """The comparisons that a condition joins: both sides and the direction of each."""
        if operation.opcode == "compare":
            direction = re.search(r"direction=(\w+)", operation.attributes)
            sides = [self._scalar(computation, x, inputs) for x in operation.operands]
            yield *sides, direction[1] if direction else ""
        elif operation.opcode == "fusion":
            inside = self.computations[operation.called("calls") or ""]
            given = [self._scalar(computation, x, inputs) for x in operation.operands]
            yield from self._comparisons(inside, inside.root, given)
        elif operation.opcode == "and" or operation.opcode in _COPIES:
            for name in operation.operands:
                yield from self._comparisons(computation, computation.operations[name], inputs)

    def _scalar(self, computation: Computation, name: str, inputs) -> int | Element | None:
        """A whole number where it is a constant, or its place in what the loop carries."""
        operation = computation.operations[name]
        if operation.opcode == "constant":
            return int(operation.arguments) if re.fullmatch(r"-?\d+", operation.arguments) else None
        if operation.opcode in _COPIES:
            return self._scalar(computation, operation.operands[0], inputs)
        if operation.opcode == "get-tuple-element":
            source = computation.operations[operation.operands[0]]
            return self._element(computation, source, operation.number("index") or 0, inputs)
        if operation.opcode == "parameter" and inputs is not None:
            return inputs[int(operation.arguments)]
        if operation.opcode == "fusion":
            inside = self.computations[operation.called("calls") or ""]
            given = [self._scalar(computation, x, inputs) for x in operation.operands]
            return self._scalar(inside, inside.root.name, given)
        return None

    def _element(self, computation, source: Operation, index: int, inputs) -> int | Element | None:
        if source.opcode == "parameter" and inputs is None:
            return Element(index)
        if source.opcode == "tuple":
            return self._scalar(computation, source.operands[index], inputs)
        return None

    def _step(self, body: Computation, element: Element) -> int | None:
        """The number that a loop adds to what it counts."""
        if body.root.opcode != "tuple":
            return None
        computation, inputs = body, None
        operation = body.operations[body.root.operands[element.index]]
        while operation.opcode in _COPIES | {"fusion", "get-tuple-element"}:
            if operation.opcode == "fusion":
                inputs = [self._scalar(computation, x, inputs) for x in operation.operands]
                computation = self.computations[operation.called("calls") or ""]
                operation = computation.root
            else:
                source = computation.operations[operation.operands[0]]
                if operation.opcode == "get-tuple-element" and source.opcode != "tuple":
                    return None
                operation = source
        sides = [self._scalar(computation, x, inputs) for x in operation.operands]
        numbers = [x for x in sides if isinstance(x, int)]
        is_sum = operation.opcode in ("add", "subtract") and element in sides
        return numbers[0] if is_sum and numbers else None


def _operation(line: str) -> Operation | None:
    start = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if start is None:
        return None
    rest = line[start.end() :]
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    arguments, opcode = rest[opening + 1 : closing - 1], rest[:opening]
    operands = tuple(re.findall(r"%([\w.\-]+)", arguments))
    return Operation(start[2], shape, opcode, operands, arguments, rest[closing:], bool(start[1]))


def _plain(attributes: str) -> str:
    """Attributes without names and notes."""
    return re.sub(r"%[\w.\-]+", "", re.split(r", (?:metadata|backend_config)=", attributes)[0])


def _closing(text: str, opening: int) -> int:
    """The place behind the bracket that closes the one at ``opening``."""
    depth = 0
    for place in range(opening, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place + 1
    raise ValueError(f"brackets are not balanced in {text[:80]!r}")
