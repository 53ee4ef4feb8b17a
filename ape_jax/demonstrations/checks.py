"""Checks of demonstrations that come from outside: types, shapes, ranges, and episodes."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ape_jax import envs
from ape_jax.types import SettingError

HIDDEN_EXPERT = "hidden_expert"
"""Name of the array with the expert that acted in each step."""

_WIDER = {np.dtype(np.float32): np.dtype(np.float64), np.dtype(np.int32): np.dtype(np.int64)}


def check_steps(
    env_id: str, env_param: Sequence[str], arrays: Mapping[str, np.ndarray], where: str
) -> dict[str, np.ndarray]:
    """Check arrays of steps against the environment that they come from, and convert their dtypes.

    Args:
      env_id: name of the environment.
      env_param: its parameters that differ from its defaults, as name=value.
      arrays: the fields of ``Demonstrations`` [N, …], and perhaps the hidden expert [N].
      where: what the message of a SettingError calls these demonstrations.
    """
    try:
        env, env_params = envs.make(env_id, envs.parse_overrides(env_param))
    except SettingError as error:
        raise SettingError(f"{where}: {error}") from None
    shown = jax.eval_shape(lambda key: env.reset_env(key, env_params)[0], jax.random.key(0))
    action_space = env.action_space(env_params)
    one_array = isinstance(shown, jax.ShapeDtypeStruct)
    if not one_array or not isinstance(action_space, envs.spaces.Discrete | envs.spaces.Box):
        raise SettingError(
            f"{where}: env must have one array as its observation, and Discrete or Box actions; "
            f"those of {env_id!r} are {shown} and {action_space}. Choose another environment"
        )
    discrete = isinstance(action_space, envs.spaces.Discrete)
    kinds: dict[str, tuple[tuple[int, ...], Any]] = {
        "observation": (shown.shape, shown.dtype),
        "action": (action_space.shape, np.int32 if discrete else np.float32),
        "reward": ((), np.float32),
        "terminated": ((), np.bool_),
        "truncated": ((), np.bool_),
        "episode": ((), np.int32),
        HIDDEN_EXPERT: ((), np.int32),
    }
    steps = {
        name: _convert(name, arrays[name], shape, np.dtype(dtype), where)
        for name, (shape, dtype) in kinds.items()
        if name in arrays
    }
    lengths = {name: len(array) for name, array in steps.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise SettingError(
            f"{where}: all arrays must have one entry per step, so the same length; got {found}. "
            "Save the same steps in each"
        )
    if lengths["action"] < 2:
        raise SettingError(
            f"{where} must hold at least 2 steps; got {lengths['action']}. Record more"
        )
    for name, array in steps.items():
        if array.dtype.kind == "f":
            rule, fix = f"{name} must be finite", "Remove that episode, or correct it"
            _refuse(~np.isfinite(array), array, f"{where}: {rule}", fix)
    observation_space = env.observation_space(env_params)
    # A Box of observations is not checked: several gymnax environments leave their own bounds.
    if isinstance(observation_space, envs.spaces.Discrete):
        _check_range("observation", steps["observation"], 0, observation_space.n - 1, where)
    low, high = (0, action_space.n - 1) if discrete else (action_space.low, action_space.high)
    _check_range("action", steps["action"], low, high, where)
    _check_episodes(steps, where)
    return steps


def describe(array: np.ndarray) -> str:
    """A single value as it is, and a larger array by its dtype and shape, for a message."""
    return repr(array.item()) if array.size == 1 else f"{array.dtype} of shape {list(array.shape)}"


def _refuse(wrong: np.ndarray, array: np.ndarray, rule: str, fix: str) -> None:
    """Raise SettingError with the first entry that is wrong, if there is one."""
    if wrong.any():
        index = np.unravel_index(np.argmax(wrong), wrong.shape)
        raise SettingError(f"{rule}; got {array[index].item()!r} at step {index[0]}. {fix}")


def _convert(
    name: str, array: np.ndarray, shape: tuple[int, ...], dtype: np.dtype, where: str
) -> np.ndarray:
    """Check the shape [N, …] and convert to the dtype: float64 is rounded, int64 has to fit."""
    if array.ndim == 0 or array.shape[1:] != shape:
        axes = ", ".join(map(str, ("N", *shape)))
        raise SettingError(
            f"{where}: {name} must have shape [{axes}]; got {list(array.shape)}. "
            "The first axis counts steps, and the others are those of the environment"
        )
    if array.dtype == dtype:
        return array
    wider = _WIDER.get(dtype)
    rule = f"{where}: {name} must be {dtype}" + (f", or {wider} within its range" if wider else "")
    fix = f"Convert it with {name}.astype(numpy.{dtype})"
    if array.dtype != wider:
        raise SettingError(f"{rule}; got {array.dtype}. {fix}")
    with np.errstate(over="ignore"):
        converted = array.astype(dtype)
    lost = np.isfinite(array) & ~np.isfinite(converted) if dtype.kind == "f" else converted != array
    _refuse(lost, array, rule, fix)
    return converted


def _check_range(name: str, array: np.ndarray, low: Any, high: Any, where: str) -> None:
    low, high = np.asarray(low, array.dtype), np.asarray(high, array.dtype)
    rule = f"{where}: {name} must be between {describe(low)} and {describe(high)}"
    fix = "Check that the steps come from this environment"
    _refuse((array < low) | (array > high), array, rule, fix)


def _check_episodes(steps: Mapping[str, np.ndarray], where: str) -> None:
    """Check that episodes are numbered 0, 1, 2 …, end where they are marked, and one is complete.

    An episode may end without a mark: ``collect`` pools parallel environments, and the last episode
    of each is cut short.
    """
    episode, terminated, truncated = (steps[x] for x in ("episode", "terminated", "truncated"))
    _refuse(
        terminated & truncated,
        terminated,
        f"{where}: a step must be terminated or truncated, not both",
        "Mark it terminated if the task ended at the time limit",
    )
    rise = np.diff(episode.astype(np.int64), prepend=0)
    stays = rise == 0
    unnumbered = ~stays & (rise != 1)
    unnumbered[0] = not stays[0]
    _refuse(
        unnumbered,
        episode,
        f"{where}: episode must be numbered 0, 1, 2 … in the order of the steps",
        "Sort steps by episode, and number those from 0",
    )
    ends = terminated | truncated
    _refuse(
        np.append(False, ends[:-1] & stays[1:]),
        episode,
        f"{where}: episode must rise after a step that is marked terminated or truncated",
        "Give the steps that follow the next number",
    )
    if not ends.any():
        raise SettingError(
            f"{where} must hold at least one complete episode, its last step terminated or "
            f"truncated; none of {len(ends)} steps is. Record more steps, or mark the ends"
        )
    if HIDDEN_EXPERT in steps:
        expert = steps[HIDDEN_EXPERT]
        _refuse(
            (expert < 0) | stays & (np.diff(expert, prepend=expert[0]) != 0),
            expert,
            f"{where}: {HIDDEN_EXPERT} must be at least 0 and the same throughout an episode",
            "Leave the array out if it is not known",
        )
