"""Numbers of a run on disk: one JSON line per update, and the fingerprint of the parameters."""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ape_jax.algorithms.common import Metrics
from ape_jax.types import DamagedError, SettingError


def fingerprint(params) -> str:
    """SHA-256 of the names, types, shapes and bytes of all parameters, in the order of names."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, or leave the old one as it is."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file, or leave the old one as it is."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


class MetricsFile:
    """The ``metrics.jsonl`` of a run: one line per update, numbered from 0, only whole lines."""

    def __init__(self, path: Path, num_done: int = 0):
        """Start the file, or continue it: keep the lines of ``num_done`` updates and cut the rest.

        Raises:
          DamagedError: the file does not hold the lines that are kept.
        """
        self.path = path
        self._num_bytes = self.check(path, num_done) if num_done else 0
        if path.exists():
            os.truncate(path, self._num_bytes)
        else:
            path.touch()

    @staticmethod
    def check(path: Path, num_done: int) -> int:
        """Length in bytes of the lines of ``num_done`` updates.

        Raises:
          DamagedError: a line is missing or damaged; the message names the first such line.
        """
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        for index in range(num_done):
            line, what = lines[index] if index < len(lines) else b"", "missing"
            if line.endswith(b"\n"):
                what = "damaged"
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    if json.loads(line)["update"] == index:
                        continue
            raise DamagedError(f"{path} must hold {num_done} updates; line {index + 1} is {what}")
        return sum(map(len, lines[:num_done]))

    def append(self, metrics: Metrics, first_update: int) -> None:
        """Append a line for every update, with every metric that the run has as a list over seeds.

        What is not known yet, such as returns before the first episode has ended, is null. If the
        lines cannot be written, the file is cut back to whole lines if that is possible. The
        arrays are [K, updates, …], and ``first_update`` counts from 0.
        """
        columns = {
            name: np.swapaxes(np.where(np.isfinite(values), values, None), 0, 1)
            for name, values in metrics._asdict().items()
            if values is not None
        }
        content = b""
        for index in range(len(columns["pe_return"])):
            values = {name: column[index].tolist() for name, column in columns.items()}
            content += json.dumps({"update": first_update + index, **values}).encode() + b"\n"
        try:
            with self.path.open("ab") as file:
                file.write(content)
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self.path, self._num_bytes)
            raise
        self._num_bytes += len(content)


LINE = {"update", "pe_return", "expert_returns", "observer_return"}
"""Names that every line holds."""


def read_updates(path: Path) -> list[dict]:
    """Read the whole lines of a ``metrics.jsonl``, also while a run is writing it.

    Raises:
      SettingError: there is no such file, or one of its lines is not a line of a run.
    """
    with contextlib.suppress(OSError, ValueError):  # Not readable, not text, or not JSON.
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
        if all(isinstance(row, dict) and row.keys() >= LINE for row in rows):
            return rows
    raise SettingError(f"run must be a directory that ape-jax train made; {path} is not readable")
