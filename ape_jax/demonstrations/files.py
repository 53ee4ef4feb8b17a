"""Demonstrations on disk: written whole or not at all, and checked before anything uses them.

The format is a NumPy ``.npz`` without pickle, described for those who bring their own files in
``docs/demonstrations.md``. Nothing in a file is ever executed.
"""

import struct
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces
from jaxtyping import Array, Int

from ape_jax import envs
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.types import SettingError

VERSION = 1
"""Of the format; a file says which it is in."""

HIDDEN_EXPERT = "hidden_expert"
"""Key of the expert that acted in each step, kept apart from what observers may see."""

ENV_PARAM = "env_param"
"""Key of the environment's parameters that differ from its defaults, as name=value texts."""

_REQUIRED = ("format_version", "env_id", *Demonstrations._fields)
_WIDER = {np.dtype(np.float32): np.dtype(np.float64), np.dtype(np.int32): np.dtype(np.int64)}
_FORMAT = "The format is in docs/demonstrations.md"


class DemonstrationFile(NamedTuple):
    """What a file holds."""

    env_id: str
    """Name of the gymnax environment."""
    demonstrations: Demonstrations
    """What observers get."""
    hidden_expert: Int[Array, " N"] | None
    """The expert that acted in each step; None where the file does not tell."""
    env_param: tuple[str, ...] = ()
    """Parameters of the environment that differ from its defaults, as name=value."""


def save(
    path: Path | str,
    env_id: str,
    demonstrations: Demonstrations,
    hidden_expert: Int[Array, " N"] | None = None,
    env_param: tuple[str, ...] = (),
) -> None:
    """Write demonstrations that ``load`` reads back, whole or not at all.

    Args:
      path: the file, under exactly this name; one that is there is replaced.
      env_id: the registered environment that they come from.
      demonstrations: steps [N].
      hidden_expert: the expert that acted in each step [N]; leave it out of a file for an attacker.
      env_param: its parameters that differ from its defaults, as name=value.

    Raises:
      SettingError: demonstrations that ``load`` would not accept, or a file that cannot be
        written.
    """
    path = Path(path)
    arrays = {name: np.asarray(x) for name, x in demonstrations._asdict().items()}
    if hidden_expert is not None:
        arrays[HIDDEN_EXPERT] = np.asarray(hidden_expert)
    arrays = _check(env_id, env_param, arrays, f"demonstrations for {path}")
    if env_param:
        arrays[ENV_PARAM] = np.array(env_param)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            np.savez_compressed(
                file,
                format_version=np.int64(VERSION),
                env_id=np.str_(env_id),
                **arrays,  # type: ignore[arg-type]
            )
        partial.replace(path)
    except OSError as error:
        raise SettingError(
            f"demonstrations must go to a file that can be written; got {path} "
            f"({error.strerror or error}). Choose another, or make room"
        ) from None
    finally:
        _remove(partial)


def load(path: Path | str, expected_env: str | None = None) -> DemonstrationFile:
    """Read demonstrations that ``save`` or anyone else wrote in the format.

    float64 is rounded to float32, and int64 taken where int32 holds every value.

    Args:
      path: the file.
      expected_env: the environment that they must come from; any if None.

    Returns:
      Environment id, demonstrations, and the hidden expert or None.

    Raises:
      SettingError: one message with the first thing that is wrong, and how to put it right.
    """
    path = Path(path)
    arrays = _read(path)
    where = f"demonstrations {path}"
    env_id, env_param = _check_header(arrays, where)
    if expected_env is not None and env_id != expected_env:
        raise SettingError(
            f"{where}: env_id must be {expected_env!r}, which is asked for here; got {env_id!r}. "
            "Bring demonstrations from that environment, or ask for this one"
        )
    checked = {name: jnp.asarray(x) for name, x in _check(env_id, env_param, arrays, where).items()}
    hidden_expert = checked.pop(HIDDEN_EXPERT, None)
    return DemonstrationFile(env_id, Demonstrations(**checked), hidden_expert, env_param)


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file, as they are; pickled content is refused unread."""
    if not path.is_file():
        raise SettingError(f"demonstrations must be a .npz file; {path} is no file. Check the path")
    try:
        if not zipfile.is_zipfile(path):
            raise SettingError(
                f"demonstrations must be a .npz file; {path} is none, or was cut short. "
                "Write it with numpy.savez_compressed, or copy it again"
            )
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            names = list(content.files)
            _check_names(names, f"demonstrations {path}")
            arrays = {}
            for name in names:
                try:
                    arrays[name] = content[name]
                except ValueError as error:
                    if "pickle" not in str(error).lower():
                        raise
                    raise SettingError(
                        f"demonstrations {path}: {name} must be a plain array; it holds Python "
                        "objects, which are not read. Save numbers, flags or text"
                    ) from None
    except OSError as error:
        raise SettingError(
            f"demonstrations must be a file that can be read; got {path} "
            f"({error.strerror or error}). Check its permissions"
        ) from None
    except SettingError:
        raise
    except (
        *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, KeyError, RecursionError),
        *(ValueError, TypeError, SyntaxError, NotImplementedError, RuntimeError, MemoryError),
    ) as error:
        raise SettingError(
            f"demonstrations must be a whole .npz file; {path} is damaged "
            f"({type(error).__name__}: {error}). Write or copy it again"
        ) from None
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise SettingError(
                f"demonstrations {path}: {name} must be an array; it holds something else. "
                "Write the file with numpy.savez_compressed"
            )
    return arrays


def _check_names(names: list[str], where: str) -> None:
    missing = [name for name in _REQUIRED if name not in names]
    known = (*_REQUIRED, HIDDEN_EXPERT, ENV_PARAM)
    unknown = sorted({name for name in names if name not in known})
    twice = sorted({name for name in names if names.count(name) > 1})
    wrong = [
        f"{word} {', '.join(map(repr, some))}"
        for word, some in (("missing", missing), ("unknown", unknown), ("twice", twice))
        if some
    ]
    if wrong:
        raise SettingError(
            f"{where} must hold the arrays {', '.join(_REQUIRED)}, and {HIDDEN_EXPERT} and "
            f"{ENV_PARAM} or not; "
            f"{'; '.join(wrong)}. {_FORMAT}"
        )


def _check_header(arrays: dict[str, np.ndarray], where: str) -> tuple[str, tuple[str, ...]]:
    """Check version and environment; returns its id, and its parameters as texts."""
    version, env_id = arrays["format_version"], arrays["env_id"]
    if version.shape != () or version.dtype.kind not in "iu" or version != VERSION:
        raise SettingError(
            f"{where}: format_version must be the whole number {VERSION}; got {_brief(version)}. "
            "A higher one is from a newer ape-jax: upgrade"
        )
    if env_id.shape != () or env_id.dtype.kind != "U":
        raise SettingError(
            f"{where}: env_id must be one text, such as {envs.GRIDWORLD!r}; got {_brief(env_id)}. "
            "Save the name of the environment"
        )
    env_param = arrays.get(ENV_PARAM, np.array([], np.str_))
    if env_param.ndim != 1 or env_param.dtype.kind != "U":
        raise SettingError(
            f"{where}: {ENV_PARAM} must be a list of name=value texts; got {_brief(env_param)}. "
            "Leave it out where the environment has its defaults"
        )
    return str(env_id), tuple(map(str, env_param))


def _check(
    env_id: str, env_param: tuple[str, ...], arrays: dict[str, np.ndarray], where: str
) -> dict[str, np.ndarray]:
    """Check everything, cheapest first; returns the arrays of steps in the types of the package."""
    try:
        env, env_params = envs.make(env_id, envs.parse_overrides(env_param))
    except SettingError as error:
        raise SettingError(f"{where}: {error}") from None
    shown = jax.eval_shape(env.reset_env, jax.random.key(0), env_params)[0]
    if not isinstance(shown, jax.ShapeDtypeStruct):
        raise SettingError(
            f"{where}: env must show one array as its observation; {env_id!r} shows a structure. "
            "Flatten its observations and register it under a name of its own"
        )
    action_space = env.action_space(env_params)
    if not isinstance(action_space, spaces.Discrete | spaces.Box):
        raise SettingError(
            f"{where}: env must have Discrete or Box actions; {env_id!r} has {action_space}. "
            "Choose another environment"
        )
    finite = isinstance(action_space, spaces.Discrete)
    kinds = {
        "observation": (shown.shape, shown.dtype),
        "action": (action_space.shape, np.int32 if finite else np.float32),
        "reward": ((), np.float32),
        "terminated": ((), np.bool_),
        "truncated": ((), np.bool_),
        "episode": ((), np.int32),
    }
    if HIDDEN_EXPERT in arrays:
        kinds[HIDDEN_EXPERT] = ((), np.int32)
    checked = {
        name: _as_kind(name, arrays[name], shape, np.dtype(dtype), where)
        for name, (shape, dtype) in kinds.items()
    }
    lengths = {name: len(array) for name, array in checked.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise SettingError(
            f"{where}: all arrays must have one entry a step, so the same length; got {found}. "
            "Save the same steps in each"
        )
    if lengths["action"] < 2:
        raise SettingError(
            f"{where} must hold at least 2 steps; got {lengths['action']}. Record more"
        )
    for name, array in checked.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            step, value = _first(array, ~np.isfinite(array))
            raise SettingError(
                f"{where}: {name} must be finite; got {value} at step {step}. "
                "Remove that episode, or mend it"
            )
    observation_space = env.observation_space(env_params)
    # The bounds of a Box are not checked: several gymnax environments leave their own.
    if isinstance(observation_space, spaces.Discrete):
        _check_range("observation", checked["observation"], 0, observation_space.n - 1, where)
    low, high = (0, action_space.n - 1) if finite else (action_space.low, action_space.high)
    _check_range("action", checked["action"], low, high, where)
    _check_episodes(checked, where)
    return checked


def _as_kind(
    name: str, array: np.ndarray, shape: tuple[int, ...], dtype: np.dtype, where: str
) -> np.ndarray:
    """The array in its type, if it has the shape [N, …]; float64 is rounded, int64 must fit."""
    if array.ndim == 0 or array.shape[1:] != shape:
        axes = ", ".join(map(str, ("N", *shape)))
        raise SettingError(
            f"{where}: {name} must have shape [{axes}]; got {list(array.shape)}. "
            "The first axis counts steps, the others are the environment's own"
        )
    if array.dtype == dtype:
        return array
    wider = _WIDER.get(dtype)
    or_wider = "" if wider is None else f", or {wider} within its range"
    fix = f"Convert it with {name}.astype(numpy.{dtype})"
    if array.dtype != wider:
        raise SettingError(f"{where}: {name} must be {dtype}{or_wider}; got {array.dtype}. {fix}")
    with np.errstate(over="ignore"):
        converted = array.astype(dtype)
    lost = np.isfinite(array) & ~np.isfinite(converted) if dtype.kind == "f" else converted != array
    if lost.any():
        step, value = _first(array, lost)
        raise SettingError(
            f"{where}: {name} must be {dtype}{or_wider}; got {value!r} at step {step}. {fix}"
        )
    return converted


def _check_range(name: str, array: np.ndarray, low, high, where: str) -> None:
    low, high = np.asarray(low, array.dtype), np.asarray(high, array.dtype)
    outside = (array < low) | (array > high)
    if outside.any():
        step, value = _first(array, outside)
        raise SettingError(
            f"{where}: {name} must be between {_brief(low)} and {_brief(high)}; got {value} at "
            f"step {step}. Check that the environment is the one that the steps come from"
        )


def _check_episodes(arrays: dict[str, np.ndarray], where: str) -> None:
    """Episodes are numbered 0, 1, 2 …; an end mark ends its episode, and one is complete.

    An episode may be followed by the next without a mark: parallel streams that are pooled, as in
    ``demonstrations.collect``, each leave their last one cut short.
    """
    episode, terminated, truncated = (arrays[x] for x in ("episode", "terminated", "truncated"))
    both = terminated & truncated
    if both.any():
        raise SettingError(
            f"{where}: a step must be terminated or truncated, not both; step "
            f"{int(np.argmax(both))} is. Where the task ended at the time limit, mark terminated"
        )
    if episode[0] != 0:
        raise SettingError(
            f"{where}: episode must be numbered from 0; got {episode[0]} first. Subtract it"
        )
    rise = np.diff(episode.astype(np.int64))
    jumps = (rise != 0) & (rise != 1)
    if jumps.any():
        step = int(np.argmax(jumps)) + 1
        raise SettingError(
            f"{where}: episode must stay or rise by 1 from step to step; got {episode[step]} after "
            f"{episode[step - 1]} at step {step}. Sort steps by episode, and number those 0, 1, 2 …"
        )
    ends = terminated | truncated
    goes_on = ends[:-1] & (rise == 0)
    if goes_on.any():
        step = int(np.argmax(goes_on))
        raise SettingError(
            f"{where}: a step that is marked terminated or truncated must be the last of its "
            f"episode; episode {episode[step]} goes on after step {step}. "
            "Give the steps that follow the next number"
        )
    if not ends.any():
        raise SettingError(
            f"{where} must hold at least one complete episode, its last step terminated or "
            f"truncated; none of {len(ends)} steps is. Record more steps, or mark the ends"
        )
    if HIDDEN_EXPERT in arrays:
        expert = arrays[HIDDEN_EXPERT]
        wrong = np.concatenate([[False], (rise == 0) & (np.diff(expert) != 0)]) | (expert < 0)
        if wrong.any():
            step, value = _first(expert, wrong)
            raise SettingError(
                f"{where}: {HIDDEN_EXPERT} must be at least 0 and the same throughout an episode; "
                f"got {value} at step {step}. Leave the array out if it is not known"
            )


def _first(array: np.ndarray, where: np.ndarray) -> tuple[int, object]:
    """Step and value of the first entry that is marked."""
    index = np.unravel_index(np.argmax(where), where.shape)
    return int(index[0]), array[index].item()


def _brief(array: np.ndarray) -> str:
    return repr(array.item()) if array.size == 1 else f"{array.dtype} of shape {list(array.shape)}"


def _remove(partial: Path) -> None:
    try:
        partial.unlink(missing_ok=True)
    except OSError:
        return
