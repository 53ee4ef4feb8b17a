"""What commands share: output directories, and plain words on the terminal."""

import os
import tempfile
from pathlib import Path

from rich.console import Console

from ape_jax.types import SettingError

INTERRUPTED = 130
"""Exit code after Ctrl-C, by convention 128 + SIGINT."""


def say(console: Console, text: str) -> None:
    """Print as it stands: paths may hold what looks like markup."""
    console.print(text, markup=False, highlight=False)


def prepare(out: Path, kind: str = "directory") -> Path:
    """Make the output directory, sure that files can be written there.

    Args:
      out: the directory.
      kind: what --out names: the directory, or a file in it.

    Raises:
      SettingError: they cannot.
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
