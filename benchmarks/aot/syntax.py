"""The text form of XLA's HLO: computations, which consist of operations on arrays."""

import dataclasses
import functools
import math
import re
from typing import NamedTuple

BYTES = {"pred": 1, "token": 0, "opaque": 0, "bf16": 2, "f16": 2, "c64": 8, "c128": 16}
"""Bytes of an element, where the digits of its type do not say how many."""
_ARRAY = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,<=]*)\](?:\{([^{}]*)\})?")


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


class Program(NamedTuple):
    """All computations by name, and the name of the one that runs first."""

    computations: dict[str, Computation]
    entry: str


def read(text: str) -> Program:
    """Read the text of ``jax.stages.Compiled.as_text``."""
    computations: dict[str, Computation] = {}
    entry, name, operations = "", "", {}
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-]+)\s.*\{$", line)
        if header and not line.startswith(" ") and not line.startswith("HloModule"):
            name, operations = header[2], {}
            entry = name if header[1] else entry
        elif line.startswith("}") and name:
            computations[name] = Computation(name, operations)
        elif (operation := _operation(line)) is not None:
            operations[operation.name] = operation
    return Program(computations, entry)


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


def _closing(text: str, opening: int) -> int:
    """The place behind the bracket that closes the one at ``opening``."""
    depth = 0
    for place in range(opening, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place + 1
    raise ValueError(f"brackets are not balanced in {text[:80]!r}")
