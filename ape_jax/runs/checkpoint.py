"""Checkpoints on disk: arrays by Orbax, a manifest that says what they must be, and runs read back.

A checkpoint is a folder that takes its name when everything is in it::

    RUN/checkpoints/00000150/state/         # the arrays, as Orbax writes them
    RUN/checkpoints/00000150/manifest.json  # schema, configuration, arrays, SHA-256 of every file
    RUN/checkpoints/final/...               # the parameters after the last update

Nothing is unpickled. Orbax is imported where it is used: that takes half a second, which a training
need not wait for.
"""

import contextlib
import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from ape_jax._version import __version__
from ape_jax.algorithms import TrainState, init
from ape_jax.algorithms.task import Task, make_task
from ape_jax.config import RunConfig
from ape_jax.networks import EnsembleParams
from ape_jax.training.trainer import seed_keys
from ape_jax.types import DamagedError, SettingError

log = logging.getLogger(__name__)

SCHEMA = 1
"""Of checkpoints; each says which it is of."""

FINAL = "final"
"""Name of the checkpoint that holds the parameters after the last update, and they alone."""

UNFINISHED = ".partial"
"""Ends the name of a folder that is being written or deleted, or was when its process ended."""

Tree = TypeVar("Tree")
"""A pytree of any kind."""


def folder_of(run: Path) -> Path:
    """Where a run keeps its checkpoints."""
    return run / "checkpoints"


def write(path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Write a checkpoint whole or not at all.

    Args:
      path: its folder; one that is there is replaced.
      arrays: from ``named``.
      about: what else its manifest says, as JSON.

    Raises:
      OSError: it cannot be written; nothing of it is left.
    """
    path = path.resolve()
    partial = path.with_name(path.name + UNFINISHED)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _save_arrays(partial, arrays)
        content = {
            "schema": SCHEMA,
            "version": __version__,
            **about,
            "arrays": {name: _kind(array) for name, array in arrays.items()},
            "files": {
                str(file.relative_to(partial)): _sha256(file.read_bytes())
                for file in sorted(partial.rglob("*"))
                if file.is_file()
            },
        }
        content["digest"] = _digest(content)
        text = json.dumps(content, indent=1) + "\n"
        (partial / "manifest.json").write_text(text, encoding="utf-8")
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    remove(path)
    partial.rename(path)


def _save_arrays(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Into a folder, and once back: what is certified can be read.

    Raises:
      OSError: they cannot be written.
    """
    import orbax.checkpoint.experimental.v1 as ocp

    # One process writes, of however many train: what it holds is the whole.
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix=folder.name,
    )
    options = alone if jax.process_count() > 1 else None
    try:
        with _plain_name(folder) as plain, ocp.Context(multiprocessing_options=options):
            ocp.save(plain / "state", dict(arrays))
            ocp.load(plain / "state", dict(arrays))
    except (ValueError, KeyError) as error:  # As TensorStore says that a disk is full.
        raise OSError(" ".join(str(error).split())[:200]) from error


@contextlib.contextmanager
def _plain_name(folder: Path) -> Iterator[Path]:
    """Another path to a folder: Orbax takes ``*``, ``?`` and ``[`` in a path for patterns."""
    with tempfile.TemporaryDirectory() as elsewhere:
        link = Path(elsewhere) / "checkpoint"
        link.symlink_to(folder, target_is_directory=True)
        yield link


def remove(path: Path) -> None:
    """Delete a checkpoint, which is one no longer from the first moment on."""
    if path.exists():
        doomed = path.with_name(f"{path.name}.old{UNFINISHED}")
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def verify(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, every file of which is as it was written.

    Raises:
      DamagedError: one is not, and which.
    """
    manifest = path / "manifest.json"
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        digest = content.pop("digest")
        sound = digest == _digest(content)
    except FileNotFoundError:
        raise DamagedError(f"{manifest} is missing") from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        sound = False
    if not sound:
        raise DamagedError(f"{manifest} is damaged")
    if content["schema"] != SCHEMA:
        raise DamagedError(
            f"{manifest} is of schema {content['schema']}, by ape_jax {content['version']}; this "
            f"one reads schema {SCHEMA}"
        )
    for name, digest in content["files"].items():
        try:
            found = _sha256((path / name).read_bytes())
        except OSError as error:
            what = "is missing" if isinstance(error, FileNotFoundError) else "cannot be read"
            raise DamagedError(f"{path / name} {what}") from None
        if found != digest:
            raise DamagedError(f"{path / name} is damaged")
    return content


def read(path: Path, make: Callable[[], Tree]) -> tuple[Tree, dict[str, Any]]:
    """The arrays of a sound checkpoint on one device, and its manifest.

    Args:
      path: its folder.
      make: makes a pytree of the same shapes and dtypes; it is traced, not run.

    Raises:
      DamagedError: it is not as it was written, or holds other arrays than expected.
    """
    import orbax.checkpoint.experimental.v1 as ocp

    path = path.resolve()
    manifest = verify(path)
    structure, keys = None, {}

    def flat():
        nonlocal structure, keys
        tree = make()
        structure, keys = jax.tree.structure(tree), {n: _is_key(x) for n, x in _leaves(tree)}
        return {name: _numbers(leaf) for name, leaf in _leaves(tree)}

    wanted = jax.eval_shape(flat)
    for name in sorted({*wanted, *manifest["arrays"]}):
        want = _kind(wanted[name]) if name in wanted else "none"
        got = manifest["arrays"].get(name, "none")
        if want != got:
            raise DamagedError(
                f"{path} does not fit the run's configuration: {name} is {got}, needed is {want}"
            )
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)
        for name, leaf in wanted.items()
    }
    try:
        with _plain_name(path) as plain:
            arrays = ocp.load(plain / "state", shapes)
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise DamagedError(f"{path / 'state'} is damaged ({type(error).__name__})") from None
    leaves = [
        jax.random.wrap_key_data(arrays[name]) if is_key else arrays[name]
        for name, is_key in keys.items()
    ]
    return jax.tree.unflatten(structure, leaves), manifest


def saved_updates(run: Path) -> list[int]:
    """Of the checkpoints that a run holds, sound or not, in ascending order."""
    names = (path.name for path in folder_of(run).glob("*") if path.is_dir())
    return sorted(int(name) for name in names if name.isdecimal())


def path_of(run: Path, num_done: int) -> Path:
    """Folder of the checkpoint after so many updates."""
    return folder_of(run) / f"{num_done:08}"


class Saver:
    """Writes a run's checkpoints in the background, one at a time, and keeps the last and the best.

    A checkpoint that cannot be written is told of, and training goes on: those before it stay.
    """

    def __init__(self, run: Path, config: RunConfig, keep: int):
        """Write nothing yet.

        Args:
          run: its directory.
          config: of it.
          keep: how many of the newest are kept, besides the best.
        """
        self.run, self.keep = run, keep
        self._about = {"config": config.to_flat()}
        self._writer = ThreadPoolExecutor(1)
        self._last: Future | None = None

    def save(self, num_done: int, state: TrainState, score: list[float], metrics: dict) -> None:
        """Begin to write a checkpoint; waits for the one before it.

        Args:
          num_done: updates done.
          state: [K, …].
          score: by which the best is chosen, compared as lists are.
          metrics: how ``metrics.jsonl`` begins: its ``bytes`` and ``sha256`` up to here.
        """
        self.wait()
        about = self._about | {"update": num_done, "score": score, "metrics": metrics}
        self._last = self._writer.submit(self._write, num_done, named(state), about)

    def wait(self) -> None:
        """Wait for what is being written, if anything is."""
        if self._last is None:
            return
        error = self._last.exception()
        self._last = None
        if isinstance(error, OSError):
            log.warning("checkpoint not saved: %s; training goes on", error)
        elif error is not None:
            raise error

    def _write(self, num_done: int, arrays: dict[str, np.ndarray], about: dict) -> None:
        write(path_of(self.run, num_done), arrays, about)
        updates = saved_updates(self.run)
        scores = {update: _score(path_of(self.run, update)) for update in updates}
        kept = {*updates[-self.keep :], max(updates, key=lambda update: scores[update])}
        for update in set(updates) - kept:
            remove(path_of(self.run, update))


def _score(path: Path) -> list[float]:
    """Of a checkpoint; the lowest of all where its manifest cannot be read."""
    try:
        return json.loads((path / "manifest.json").read_text(encoding="utf-8"))["score"]
    except (OSError, ValueError, KeyError):
        return []


def newest_sound(run: Path) -> int | None:
    """Update of the newest checkpoint of a run that is as it was written; None if none is."""
    for update in reversed(saved_updates(run)):
        try:
            verify(path_of(run, update))
        except DamagedError:
            continue
        return update
    return None


def load_state(run: Path, config: RunConfig, task: Task, num_done: int) -> tuple[TrainState, dict]:
    """The state [K, …] after so many updates of a run, and the manifest that came with it.

    Raises:
      DamagedError: the checkpoint is not as it was written.
      SettingError: it was saved by a run of other settings.
    """
    path = path_of(run, num_done)
    about, own = verify(path)["config"], config.to_flat()
    for name in own:
        if about.get(name) != own[name]:
            raise SettingError(
                f"resume needs the settings that the run began with; {path} was saved with "
                f"{name} {about.get(name)!r}, and config.yaml says {own[name]!r}. Restore it"
            )
    keys = seed_keys(config.first_seed, config.seeds)
    return read(path, lambda: jax.vmap(init, (0, None, None))(keys, task, config.hypers))


def save_params(run: Path, params: EnsembleParams, config: RunConfig) -> None:
    """Save the final parameters [K, …] of a run."""
    about = {"config": config.to_flat(), "update": config.train.num_updates}
    write(folder_of(run) / FINAL, named(params), about)


def load_run(run: Path | str) -> tuple[RunConfig, Task, EnsembleParams]:
    """Read back a finished run that ``ape-jax train`` made.

    Args:
      run: its directory.

    Returns:
      Its configuration, its task, and its final parameters [K, …].

    Raises:
      SettingError: the directory holds no finished run.
    """
    run = Path(run)
    final = folder_of(run) / FINAL
    if (run / "config.yaml").exists() and not final.exists():
        raise SettingError(
            f"run must be finished; {run} is not. Go on with ape-jax train --resume {run}"
        )
    for part in (run / "config.yaml", final):
        if not part.exists():
            raise SettingError(f"run must be a directory that ape-jax train made; no {part}")
    config = RunConfig.load(run / "config.yaml")
    task = make_task(config.train)
    keys = seed_keys(config.first_seed, config.seeds)
    try:
        return config, task, read(final, lambda: jax.vmap(task.networks.init)(keys))[0]
    except DamagedError as error:
        newest = newest_sound(run)
        fix = "Train again" if newest is None else f"Go on with ape-jax train --resume {run}"
        raise SettingError(
            f"run must hold parameters as they were saved, that fit its config.yaml: {error}. {fix}"
        ) from None


def named(tree: Any) -> dict[str, np.ndarray]:
    """The arrays of a pytree on the host, by their paths; keys as the numbers they are made of."""
    return jax.device_get({name: _numbers(leaf) for name, leaf in _leaves(tree)})


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    found = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in found]


def _numbers(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _kind(array: Any) -> str:
    return f"{np.dtype(array.dtype).name}{list(array.shape)}"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _digest(content: dict) -> str:
    return _sha256(json.dumps(content, sort_keys=True).encode())
