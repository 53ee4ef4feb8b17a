"""Compiled programs: the operations that a device starts one by one, and how often each runs.

A program consists of computations. The first one runs once; others are bodies of loops, branches,
or the insides of fused operations.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.aot.loops import TripCount, trip_count
from benchmarks.aot.syntax import Computation, Operation, read


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
        self.computations, entry = read(text)
        self.loops: dict[str, TripCount] = {}
        self.executed = list(self._executed(self.computations[entry], 1, ()))
        """All operations of the program, except for those inside fused ones."""

    def loops_of_kind(self, kind: str) -> dict[str, int]:
        """The loops whose trip counts are of a kind, and the counts."""
        return {name: trips.count for name, trips in self.loops.items() if trips.kind == kind}

    def _executed(
        self, computation: Computation, times: int, loops: tuple[str, ...]
    ) -> Iterator[Execution]:
        for operation in computation.operations.values():
            if operation.opcode == "while":
                trips = self.loops[operation.name] = trip_count(
                    self.computations, operation, computation
                )
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
        """The code of an operation without names: the same for operations that compute the same."""
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


def _plain(attributes: str) -> str:
    """Attributes without names and notes."""
    return re.sub(r"%[\w.\-]+", "", re.split(r", (?:metadata|backend_config)=", attributes)[0])
