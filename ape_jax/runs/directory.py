"""The directory of a run that is trained: held by one process, written as training goes."""

import logging
import shutil
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from ape_jax.algorithms import TrainState
from ape_jax.algorithms.task import Task
from ape_jax.config import RunConfig
from ape_jax.runs import checkpoint, trackers
from ape_jax.runs.metrics import MetricsFile, check_metrics
from ape_jax.types import DamagedError, SettingError

log = logging.getLogger(__name__)


class RunDirectory:
    """One process' hold on a run's directory; it ends with the process, however that ends."""

    def __init__(self, path: Path):
        """Take hold of a directory that exists.

        Raises:
          SettingError: another process holds it.
        """
        self.path = path
        self._lock = FileLock(path / ".lock")
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise SettingError(
                f"out must not be in use; another run is being written to {path}. Wait for it, or "
                "choose another --out"
            ) from None

    def release(self) -> None:
        """Let others write."""
        self._lock.release()

    @property
    def holds_run(self) -> bool:
        """Whether a run was begun here."""
        return (self.path / "config.yaml").exists()

    def begin(self, config: RunConfig) -> MetricsFile:
        """Put a run in the place of whatever run was there before."""
        (self.path / "summary.json").unlink(missing_ok=True)
        for folder in (checkpoint.folder_of(self.path), self.path / trackers.TENSORBOARD):
            shutil.rmtree(folder, ignore_errors=True)
        (self.path / trackers.WANDB_ID).unlink(missing_ok=True)
        config.save(self.path / "config.yaml")
        return MetricsFile(self.path / "metrics.jsonl")

    def go_on(self, config: RunConfig, task: Task) -> tuple[int, TrainState | None, MetricsFile]:
        """The newest sound checkpoint: updates done, the state [K, …] after them, what came before.

        Damaged ones are told of and set aside. A run that was never saved begins again: no update,
        no state.

        Raises:
          SettingError: as ``newest_state``.
        """
        for left in checkpoint.folder_of(self.path).glob(f"*{checkpoint.UNFINISHED}"):
            shutil.rmtree(left, ignore_errors=True)
        newest = newest_state(self.path, config, task)
        if newest.metrics is None:
            return 0, None, self.begin(config)
        for path, message in newest.damaged:
            sound = checkpoint.path_of(self.path, newest.num_done)
            log.warning("%s; going on from the newest sound checkpoint, %s", message, sound)
            path.rename(path.with_name(path.name + ".damaged"))
        file = MetricsFile(self.path / "metrics.jsonl", newest.metrics)
        return newest.num_done, newest.state, file


class Newest(NamedTuple):
    """Where a run can be gone on with."""

    num_done: int
    """Updates done."""
    state: TrainState | None
    """[K, …]; None before anything was saved."""
    metrics: dict | None
    """What ``metrics.jsonl`` held then."""
    damaged: list[tuple[Path, str]]
    """Later checkpoints, and what is wrong with them."""


def newest_state(run: Path, config: RunConfig, task: Task) -> Newest:
    """The newest checkpoint that is sound, with the metrics before it; changes nothing.

    Raises:
      SettingError: none is, or it was saved by other settings.
    """
    damaged = []
    for num_done in reversed(checkpoint.saved_updates(run)):
        try:
            state, manifest = checkpoint.load_state(run, config, task, num_done)
            check_metrics(run / "metrics.jsonl", manifest["metrics"])
        except DamagedError as error:
            damaged.append((checkpoint.path_of(run, num_done), str(error)))
            continue
        return Newest(num_done, state, manifest["metrics"], damaged)
    if damaged:
        raise SettingError(
            "resume needs a sound checkpoint, and none is: "
            f"{'; '.join(message for _, message in damaged)}. Train anew with --overwrite"
        )
    return Newest(0, None, None, [])


def is_finished(run: Path) -> bool:
    """Whether a run was trained to its end, and evaluated, and its parameters can be read."""
    if not (run / "summary.json").exists():
        return False
    try:
        checkpoint.verify(checkpoint.folder_of(run) / checkpoint.FINAL)
    except DamagedError:
        return False
    return True
