"""Files of demonstrations: written whole or not at all, and checked before anything uses them.

The format is a NumPy ``.npz`` without pickle; ``docs/demonstrations.md`` describes it for those who
bring their own files. Nothing in a file is ever executed.
"""

import contextlib
import struct
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from ape_jax import envs
from ape_jax.demonstrations.checks import HIDDEN_EXPERT, check_steps, describe
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.types import SettingError

VERSION = 1
"""Version of the format, which each file states."""

ENV_PARAM = "env_param"

_REQUIRED = ("format_version", "env_id", *Demonstrations._fields)
_DAMAGE: tuple[type[Exception], ...] = (ValueError, TypeError, KeyError, SyntaxError)
_DAMAGE += (RuntimeError, MemoryError, EOFError, zipfile.BadZipFile, zlib.error, struct.error)
"""Errors that NumPy and zipfile raise on damaged files."""


class DemonstrationFile(NamedTuple):
    """The content of a file."""

    env_id: str
    demonstrations: Demonstrations
    hidden_expert: Int[Array, " N"] | None
    """The expert that acted in each step; None if the file does not say."""
    env_param: tuple[str, ...] = ()
    """Parameters of the environment that differ from its defaults, as name=value."""


def save(
    path: Path | str,
    env_id: str,
    demonstrations: Demonstrations,
    hidden_expert: Int[Array | np.ndarray, " N"] | None = None,
    env_param: tuple[str, ...] = (),
) -> None:
    """Write demonstrations to a file that ``load`` reads, whole or not at all.

    Args:
      path: the file, under exactly this name; a file that is already there is replaced.
      env_id: name of the environment that they come from.
      demonstrations: steps [N].
      hidden_expert: leave it out of a file for an attacker.
      env_param: the environment's parameters that differ from its defaults, as name=value.

    Raises:
      SettingError: ``load`` would not accept the demonstrations, or the file cannot be written.
    """
    path = Path(path)
    arrays = {name: np.asarray(x) for name, x in demonstrations._asdict().items()}
    if hidden_expert is not None:
        arrays[HIDDEN_EXPERT] = np.asarray(hidden_expert)
    arrays = check_steps(env_id, env_param, arrays, f"demonstrations for {path}")
    arrays |= {"format_version": np.asarray(VERSION), "env_id": np.asarray(env_id)}
    if env_param:
        arrays[ENV_PARAM] = np.array(env_param)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        partial.replace(path)
    except OSError as error:
        raise SettingError(
            f"demonstrations must go to a file that can be written; got {path} "
            f"({error.strerror or error}). Choose another, or make room"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def load(path: Path | str) -> DemonstrationFile:
    """Read demonstrations that ``save`` or another program wrote in the format.

    float64 is rounded to float32; int64 is accepted where int32 holds every value.

    Raises:
      SettingError: one message with the first thing that is wrong, and how to correct it.
    """
    path = Path(path)
    where = f"demonstrations {path}"
    arrays = _read(path, where)
    env_id, env_param = _check_header(arrays, where)
    checked = check_steps(env_id, env_param, arrays, where)
    steps = {name: jnp.asarray(array) for name, array in checked.items()}
    hidden_expert = steps.pop(HIDDEN_EXPERT, None)
    return DemonstrationFile(env_id, Demonstrations(**steps), hidden_expert, env_param)


def _read(path: Path, where: str) -> dict[str, np.ndarray]:
    """Read the arrays of a file. Pickled content is refused without reading it."""
    if not path.is_file():
        raise SettingError(f"demonstrations must be a .npz file; {path} is no file. Check the path")
    try:
        if not zipfile.is_zipfile(path):
            raise SettingError(
                f"demonstrations must be a .npz file; {path} is none, or was cut short. "
                "Write it with numpy.savez_compressed, or copy it again"
            )
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            _check_names(list(content.files), where)
            return {name: _array(content, name, where) for name in content.files}
    except OSError as error:
        raise SettingError(
            f"demonstrations must be a file that can be read; got {path} "
            f"({error.strerror or error}). Check its permissions"
        ) from None
    except SettingError:
        raise
    except _DAMAGE as error:
        raise SettingError(
            f"demonstrations must be a whole .npz file; {path} is damaged "
            f"({type(error).__name__}: {error}). Write or copy it again"
        ) from None


def _array(content: np.lib.npyio.NpzFile, name: str, where: str) -> np.ndarray:
    found = "something else"
    try:
        array = content[name]
        if isinstance(array, np.ndarray):
            return array
    except ValueError as error:
        if "pickle" not in str(error).lower():
            raise
        found = "Python objects, which are not read"
    raise SettingError(
        f"{where}: {name} must be a plain array; it holds {found}. Save numbers, flags or text "
        "with numpy.savez_compressed"
    )


def _check_names(names: list[str], where: str) -> None:
    optional = (HIDDEN_EXPERT, ENV_PARAM)
    wrong = [f"missing {name!r}" for name in _REQUIRED if name not in names]
    wrong += [f"unknown {name!r}" for name in sorted(set(names) - {*_REQUIRED, *optional})]
    wrong += [f"twice {name!r}" for name in sorted(set(names)) if names.count(name) > 1]
    if wrong:
        raise SettingError(
            f"{where} must hold the arrays {', '.join(_REQUIRED)}, and may hold "
            f"{' and '.join(optional)}; {', '.join(wrong)}. The format is in docs/demonstrations.md"
        )


def _check_header(arrays: dict[str, np.ndarray], where: str) -> tuple[str, tuple[str, ...]]:
    """Check the version, and return the environment's name and parameters."""
    version, env_id = arrays["format_version"], arrays["env_id"]
    env_param = arrays.get(ENV_PARAM, np.array([], np.str_))
    rule = None
    if version.shape != () or version.dtype.kind not in "iu" or version != VERSION:
        rule, wrong = f"format_version must be the whole number {VERSION}", version
        fix = "A higher one is from a newer ape-jax: upgrade"
    elif env_id.shape != () or env_id.dtype.kind != "U":
        rule, wrong = f"env_id must be one text, such as {envs.GRIDWORLD!r}", env_id
        fix = "Save the name of the environment"
    elif env_param.ndim != 1 or env_param.dtype.kind != "U":
        rule, wrong = f"{ENV_PARAM} must be a list of name=value texts", env_param
        fix = "Leave it out where the environment has its defaults"
    if rule is not None:
        raise SettingError(f"{where}: {rule}; got {describe(wrong)}. {fix}")
    return str(env_id), tuple(map(str, env_param))
