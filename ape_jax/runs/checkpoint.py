"""Checkpoints on disk: arrays written by Orbax, and a manifest that tells whether they are sound.

A checkpoint is a folder that gets its name only when everything is in it::

    RUN/checkpoints/00000150/state/         # the arrays, as Orbax writes them
    RUN/checkpoints/00000150/manifest.json  # schema, settings, arrays, SHA-256 of every file
    RUN/checkpoints/final/...               # the parameters after the last update

Nothing is unpickled. Orbax is imported inside the functions that use it, because the import takes
half a second, and training need not wait for it.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from ape_jax.algorithms import TrainState, init
from ape_jax.algorithms.task import Task, make_task
from ape_jax.config import RunConfig
from ape_jax.networks import EnsembleParams
from ape_jax.runs.manifest import verify, write_manifest
from ape_jax.training.trainer import seed_keys
from ape_jax.types import DamagedError, SettingError

FINAL = "final"
"""Name of the checkpoint with nothing but the parameters after the last update."""

UNFINISHED = ".partial"
"""End of the name of a folder that is being written or deleted."""

Tree = TypeVar("Tree")


def folder_of(run: Path) -> Path:
    """The folder in which a run keeps its checkpoints."""
    return run / "checkpoints"


def path_of(run: Path, num_done: int) -> Path:
    """The folder of the checkpoint after ``num_done`` updates."""
    return folder_of(run) / f"{num_done:08}"


def saved_updates(run: Path) -> list[int]:
    """Number of updates of each checkpoint of a run, sound or not, in ascending order."""
    names = (path.name for path in folder_of(run).glob("*") if path.is_dir())
    return sorted(int(name) for name in names if name.isdecimal())


def newest_sound(run: Path) -> int | None:
    """Number of updates of the newest checkpoint without damage; None if there is none."""
    for update in reversed(saved_updates(run)):
        with contextlib.suppress(DamagedError):
            verify(path_of(run, update))
            return update
    return None


def write(path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Write a complete checkpoint, or leave nothing of it and raise OSError.

    Args:
      path: its folder; a checkpoint that is already there is replaced.
      arrays: the output of ``named``.
      about: what else the manifest says, as JSON values.
    """
    path = path.resolve()
    partial = path.with_name(path.name + UNFINISHED)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _save_arrays(partial, arrays)
        kinds = {name: _kind(array) for name, array in arrays.items()}
        write_manifest(partial, {**about, "arrays": kinds})
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    remove(path)
    partial.rename(path)


def remove(path: Path) -> None:
    """Delete a checkpoint. It loses its name first, so no half-deleted one can be found."""
    if path.exists():
        doomed = path.with_name(f"{path.name}.old{UNFINISHED}")
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def read(path: Path, make: Callable[[], Tree]) -> Tree:
    """Read the arrays of a sound checkpoint onto one device.

    Args:
      path: its folder.
      make: makes a pytree of the same shapes and dtypes; it is traced, not run.

    Raises:
      DamagedError: a file is missing or changed, or the arrays do not fit ``make``.
    """
    import orbax.checkpoint.experimental.v1 as ocp

    path = path.resolve()
    held = verify(path)["arrays"]
    traced: list[tuple[Any, list[tuple[str, bool]]]] = []  # Structure; which leaves are keys.

    def flat() -> dict[str, Any]:
        tree = make()
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        are_keys = [(jax.tree_util.keystr(path), _is_key(leaf)) for path, leaf in leaves]
        traced.append((jax.tree.structure(tree), are_keys))
        return _numbers(tree)

    wanted = jax.eval_shape(flat)
    structure, are_keys = traced[0]
    for name in sorted({*wanted, *held}):
        want = _kind(wanted[name]) if name in wanted else "none"
        got = held.get(name, "none")
        if want != got:
            raise DamagedError(
                f"{path} does not fit the run's settings: array {name} is {got}, and must be {want}"
            )
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    targets = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)
        for name, leaf in wanted.items()
    }
    try:
        with _plain_name(path) as plain:
            arrays = ocp.load(plain / "state", targets)
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise DamagedError(f"{path / 'state'} is damaged ({type(error).__name__})") from None
    wrap = jax.random.wrap_key_data
    leaves = [wrap(arrays[name]) if is_key else arrays[name] for name, is_key in are_keys]
    return jax.tree.unflatten(structure, leaves)


def load_state(run: Path, config: RunConfig, task: Task, num_done: int) -> TrainState:
    """Read the state [K, …] of a run after ``num_done`` updates.

    Raises:
      DamagedError: the checkpoint is damaged.
      SettingError: it was saved by a run with other settings.
    """
    path = path_of(run, num_done)
    saved, own = verify(path)["config"], config.to_flat()
    for name in own:
        if saved.get(name) != own[name]:
            raise SettingError(
                f"resume needs the settings that the run was started with; {path} was saved with "
                f"{name}={saved.get(name)!r}, and config.yaml says {own[name]!r}. Restore it"
            )
    keys = seed_keys(config.first_seed, config.seeds)
    return read(path, lambda: jax.vmap(init, (0, None, None))(keys, task, config.hypers))


def load_run(run: Path | str) -> tuple[RunConfig, Task, EnsembleParams]:
    """Read the settings, the task and the final parameters [K, …] of a finished run.

    Raises:
      SettingError: the directory holds no finished run, or its parameters are damaged.
    """
    run = Path(run)
    final, settings = folder_of(run) / FINAL, run / "config.yaml"
    if not settings.exists():
        raise SettingError(f"run must be a directory that ape-jax train made; no {settings}")
    if not final.exists():
        raise SettingError(
            f"run must be finished; {run} is not. Continue it with ape-jax train --resume {run}"
        )
    config = RunConfig.load(settings)
    task = make_task(config.train)
    keys = seed_keys(config.first_seed, config.seeds)
    try:
        return config, task, read(final, lambda: jax.vmap(task.networks.init)(keys))
    except DamagedError as error:
        saved = newest_sound(run) is not None
        fix = f"Continue with ape-jax train --resume {run}" if saved else "Train again"
        raise SettingError(
            f"run must hold undamaged parameters that fit its config.yaml: {error}. {fix}"
        ) from None


def named(tree: Any) -> dict[str, np.ndarray]:
    """Copy the arrays of a pytree to the host, by their paths; random keys as plain numbers."""
    return jax.device_get(_numbers(tree))


def _save_arrays(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Save the arrays, and read them once, so that the manifest lists only readable files."""
    import orbax.checkpoint as ocp_v0
    import orbax.checkpoint.experimental.v1 as ocp

    # However many processes train, one of them writes, and it holds all values. Version 1 would
    # wait for the others here, whatever its options say (orbax 0.12.8).
    alone = {
        "primary_host": jax.process_index(),
        "active_processes": {jax.process_index()},
        "barrier_sync_key_prefix": folder.name,
    }
    try:
        with _plain_name(folder) as plain:
            if jax.process_count() == 1:
                ocp.save(plain / "state", dict(arrays))
                ocp.load(plain / "state", dict(arrays))
                return
            options = ocp_v0.options.MultiprocessingOptions(**alone)
            handler = ocp_v0.PyTreeCheckpointHandler(multiprocessing_options=options)
            saver = ocp_v0.Checkpointer(handler, multiprocessing_options=options)
            saver.save(plain / "state", args=ocp_v0.args.PyTreeSave(dict(arrays)))
            with ocp.Context(multiprocessing_options=ocp.options.MultiprocessingOptions(**alone)):
                ocp.load(plain / "state", dict(arrays))
    except (ValueError, KeyError) as error:  # TensorStore reports a full disk in this way.
        raise OSError(" ".join(str(error).split())[:200]) from error


@contextlib.contextmanager
def _plain_name(folder: Path) -> Iterator[Path]:
    """Give a folder a second path, because Orbax reads ``*``, ``?`` and ``[`` as patterns."""
    with tempfile.TemporaryDirectory() as elsewhere:
        link = Path(elsewhere) / "checkpoint"
        link.symlink_to(folder, target_is_directory=True)
        yield link


def _numbers(tree: Any) -> dict[str, Any]:
    """The arrays of a pytree by their paths, random keys as plain numbers."""
    return {
        jax.tree_util.keystr(path): jax.random.key_data(leaf) if _is_key(leaf) else leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _kind(array: Any) -> str:
    return f"{np.dtype(array.dtype).name}{list(array.shape)}"
