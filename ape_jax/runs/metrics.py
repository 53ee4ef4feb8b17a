"""Numbers of a run on disk: one JSON line an update, and the fingerprint of its parameters."""

import contextlib
import hashlib
import json
import os
from pathlib import Path

import jax
import numpy as np

from ape_jax.algorithms.common import Metrics
from ape_jax.types import DamagedError, SettingError


def fingerprint(params) -> str:
    """SHA-256 of all parameters: names, types, shapes and bytes, in the order of their names."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


class MetricsFile:
    """The ``metrics.jsonl`` of a run: one line an update, complete lines only.

    ``num_bytes`` and ``sha256`` tell what the file holds so far, for a checkpoint to remember.
    """

    def __init__(self, path: Path, kept: dict | None = None):
        """Begin the file, or go on with one.

        Args:
          path: the file; what it holds is replaced, but for what is kept.
          kept: ``bytes`` and ``sha256`` of its first lines, as ``mark`` told them; later ones
            are cut off. None begins a new file.

        Raises:
          DamagedError: the file does not begin with what is to be kept.
        """
        self.path = path
        content = b"" if kept is None else check_metrics(path, kept)
        self._digest = hashlib.sha256(content)
        self.num_bytes = len(content)
        if path.exists():
            os.truncate(path, self.num_bytes)
        else:
            path.touch()

    def mark(self) -> dict:
        """What is written so far."""
        return {"bytes": self.num_bytes, "sha256": self._digest.hexdigest()}

    def append(self, metrics: Metrics, first_update: int) -> None:
        """Append a line for every update: every metric that the run has as a list over seeds.

        What is not known yet, such as returns before the first episode has ended, is null.

        Args:
          metrics: arrays [K, updates, …].
          first_update: number of the first of them, from 0.

        Raises:
          OSError: they cannot be written; no line is left half written where that can be helped.
        """
        columns = {
            name: _known(np.asarray(values).swapaxes(0, 1))
            for name, values in metrics._asdict().items()
            if values is not None
        }
        lines = [
            json.dumps(
                {
                    "update": first_update + index,
                    **{k: x[index].tolist() for k, x in columns.items()},
                }
            )
            for index in range(len(columns["pe_return"]))
        ]
        content = "".join(line + "\n" for line in lines).encode()
        try:
            with self.path.open("ab") as file:
                file.write(content)
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self.path, self.num_bytes)
            raise
        self._digest.update(content)
        self.num_bytes += len(content)


def check_metrics(path: Path, kept: dict) -> bytes:
    """What is to be kept of a ``metrics.jsonl``, as ``MetricsFile.mark`` told it.

    Raises:
      DamagedError: the file does not begin with that.
    """
    content = path.read_bytes()[: kept["bytes"]] if path.exists() else b""
    if hashlib.sha256(content).hexdigest() != kept["sha256"]:
        raise DamagedError(f"{path} does not hold the updates before the checkpoint as they were")
    return content


LINE = {"update", "pe_return", "expert_returns", "observer_return"}
"""What every line holds."""


def read_updates(path: Path) -> list[dict]:
    """The complete lines of a ``metrics.jsonl``, also while a run writes it.

    Raises:
      SettingError: there is no such file, or a line in it is not one of a run.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        rows = [json.loads(line) for line in lines]
        if all(isinstance(row, dict) and row.keys() >= LINE for row in rows):
            return rows
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        pass
    raise SettingError(f"run must be a directory that ape-jax train made; {path} is not readable")


def _known(values: np.ndarray) -> np.ndarray:
    """None in the place of what JSON does not have: nan and infinities."""
    known = values.astype(object)
    known[~np.isfinite(values)] = None
    return known
