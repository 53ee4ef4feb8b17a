"""The manifest of a checkpoint: what it holds, and the SHA-256 of every file in its folder."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ape_jax._version import __version__
from ape_jax.types import DamagedError

NAME = "manifest.json"
SCHEMA = 2
"""Version of the format of checkpoints. Other versions are refused."""


def write_manifest(folder: Path, about: Mapping[str, Any]) -> None:
    """Write the manifest of a folder that is otherwise complete, with JSON values about it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    content = {
        "schema": SCHEMA,
        "version": __version__,
        **about,
        "files": {str(path.relative_to(folder)): _sha256(path.read_bytes()) for path in files},
    }
    content["digest"] = _digest(content)
    (folder / NAME).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def verify(folder: Path) -> dict[str, Any]:
    """Compare every file of a checkpoint with its manifest, and return the manifest.

    Raises:
      DamagedError: the manifest or a file is missing or changed; the message names it.
    """
    manifest = folder / NAME
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        sound = content.pop("digest") == _digest(content)
    except FileNotFoundError:
        raise DamagedError(f"{manifest} is missing") from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        sound = False
    if not sound:
        raise DamagedError(f"{manifest} is damaged")
    if content["schema"] != SCHEMA:
        raise DamagedError(
            f"{manifest} has schema {content['schema']}, written by ape_jax {content['version']}; "
            f"this version reads schema {SCHEMA}"
        )
    for name, digest in content["files"].items():
        try:
            found = _sha256((folder / name).read_bytes())
        except OSError as error:
            what = "is missing" if isinstance(error, FileNotFoundError) else "cannot be read"
            raise DamagedError(f"{folder / name} {what}") from None
        if found != digest:
            raise DamagedError(f"{folder / name} is damaged")
    return content


def read_score(folder: Path) -> list[float]:
    """The score that a checkpoint was saved with; the empty list where it cannot be read."""
    try:
        return json.loads((folder / NAME).read_text(encoding="utf-8"))["score"]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _digest(content: Mapping[str, Any]) -> str:
    return _sha256(json.dumps(content, sort_keys=True).encode())
