"""Functions of all commands: output directories, saving step by step, text on the terminal."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from ape_jax.errors import SettingError

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, by convention."""

Result = TypeVar("Result")


def say(console: Console, text: str) -> None:
    """Print text as it is: paths may hold what looks like markup."""
    console.print(text, markup=False, highlight=False)


def save_steps(steps: Iterator[Result], save: Callable[[Result], None]) -> tuple[int, list[Result]]:
    """Save each result as soon as it is there, and keep what is finished when Ctrl-C is pressed.

    Returns:
      The exit code, and all results.

    Raises:
      KeyboardInterrupt: there is no result yet.
    """
    results: list[Result] = []
    try:
        for result in steps:
            results.append(result)
            save(result)
    except KeyboardInterrupt:
        if not results:
            raise
        return INTERRUPTED, results
    return 0, results


def say_finished(console: Console, code: int, wall_seconds: float, out: Path) -> None:
    """Print how long it took and where the files are."""
    state = "" if code == 0 else "interrupted; what is finished is saved. "
    say(console, f"{state}{wall_seconds:.0f} s; files in {out}")


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
