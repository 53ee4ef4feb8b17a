"""What commands share: output directories, and text on the terminal."""

import os
import tempfile
from pathlib import Path

import matplotlib
from rich.console import Console

from ape_jax.types import SettingError

matplotlib.use("Agg")  # Commands draw into files only.

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, by convention."""


def say(console: Console, text: str) -> None:
    """Print text as it is: paths may hold what looks like markup."""
    console.print(text, markup=False, highlight=False)


def prepare(out: Path, kind: str = "directory") -> Path:
    """Make the output directory, and check that files can be written there.

    Args:
      out: the directory.
      kind: what --out names: the directory, or a file in it.

    Raises:
      SettingError: no files can be written there.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise SettingError(
            f"out must be a {kind} that can be written; got {out} "
            f"({os.strerror(error.errno or 0)}). Choose another --out"
        ) from None
    return out
