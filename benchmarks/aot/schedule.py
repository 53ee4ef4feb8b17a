"""Lengths of operations in the final schedule of a TPU's compiler.

libtpu writes the machine code of every operation to a file, as bundles of instructions that start
in the same cycle. The length of an operation is the number of its bundles, those in loops times the
turns of the loop. It does not contain waiting for memory. All sides of a branch count, and loops
whose turns are not written in the code count once.
"""

import re
from pathlib import Path

from benchmarks.aot.hlo import Module

_BUNDLE = re.compile(r"^\s*0(?:x[0-9a-f]+)?\s+(LB)?\w*\s*:[> ]*\{")
_DELAY = 5
"""A jump, and the bundles behind it that still run before it happens."""


def flags(folder: str) -> str:
    """Flags of libtpu with which it writes the final schedules to a folder."""
    label = "--xla_jf_dump_llo_pass_label_regex=final_bundles"
    return f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true {label}"


def lengths(folder: Path, module: Module) -> dict[str, int]:
    """Cycles of the operations, by name; of several equal operations only one is in the folder."""
    found = {}
    for path in folder.glob("*final_bundles.txt"):
        name = re.fullmatch(r"\d+-(.+)-\d+-final_bundles\.txt", path.name)
        if name and not name[1].endswith("schedule-analysis"):
            found[name[1]] = length(path.read_text(encoding="utf-8", errors="replace"))
    keys = {x.operation.name: module.signature(x.operation, x.computation) for x in module.executed}
    by_key = {keys[name]: cycles for name, cycles in found.items() if name in keys}
    return {name: found.get(name, by_key.get(key, 0)) for name, key in keys.items()}


def length(text: str) -> int:
    """Cycles of one operation."""
    bundles: list[str] = []
    headers: list[int] = []
    for line in text.splitlines():
        start = _BUNDLE.match(line)
        if start:
            headers += [len(bundles)] * (start[1] is not None)
            bundles.append(line)
        elif bundles:  # Notes may go on over several lines.
            bundles[-1] += line
    times = [1] * len(bundles)
    for header in headers:
        end, turns = _loop(bundles, header)
        for place in range(header, min(end + _DELAY, len(bundles))):
            times[place] *= turns
    return sum(times)


def _loop(bundles: list[str], header: int) -> tuple[int, int]:
    """The place of the jump back to a loop's header, and how often the loop turns."""
    regions = set(re.findall(r"region (\d+)", bundles[header]))
    for place in range(header, len(bundles)):
        jump = re.search(r"sbr\.rel \(!%(\w+)\) target = \$region(\d+)", bundles[place])
        if jump and jump[2] in regions:
            body = " ".join(bundles[header : place + 1])
            counted = re.search(rf"%{jump[1]} = scmp\.ge\.s32\.totalorder %\w+, (\d+) ", body)
            return place, int(counted[1]) if counted else 1
    return header, 1
