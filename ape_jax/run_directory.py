"""The directory of a run that is trained: held by one process, written as training goes."""

import logging
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from ape_jax import checkpoint
from ape_jax.config import RunConfig
from ape_jax.metrics import MetricsFile
from ape_jax.training import Task, TrainState
from ape_jax.types import SettingError

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

    @property
    def is_finished(self) -> bool:
        """Whether it was trained to its end, and evaluated."""
        return (self.path / "summary.json").exists()

    def begin(self, config: RunConfig) -> MetricsFile:
        """Put a run in the place of whatever run was there before."""
        (self.path / "summary.json").unlink(missing_ok=True)
        shutil.rmtree(checkpoint.folder_of(self.path), ignore_errors=True)
        config.save(self.path / "config.yaml")
        return MetricsFile(self.path / "metrics.jsonl")

    def go_on(self, config: RunConfig, task: Task) -> tuple[int, TrainState | None, MetricsFile]:
        """The newest sound checkpoint: updates done, the state [K, …] after them, what came before.

        Damaged ones are told of and set aside. A run that was never saved begins again: no update,
        no state.

        Raises:
          SettingError: every checkpoint is damaged, or was saved by other settings, or the metrics
            before it are.
        """
        for left in checkpoint.folder_of(self.path).glob(f"*{checkpoint.UNFINISHED}"):
            shutil.rmtree(left, ignore_errors=True)
        saved = checkpoint.saved_updates(self.path)
        damaged = []
        for num_done in reversed(saved):
            path = checkpoint.path_of(self.path, num_done)
            try:
                state, manifest = checkpoint.load_state(self.path, config, task, num_done)
            except checkpoint.DamagedError as error:
                damaged.append((path, str(error)))
                continue
            metrics_file = MetricsFile(self.path / "metrics.jsonl", manifest["metrics"])
            for other, message in damaged:
                log.warning("%s; going on from the newest sound checkpoint, %s", message, path)
                other.rename(other.with_name(other.name + ".damaged"))
            return num_done, state, metrics_file
        if damaged:
            raise SettingError(
                f"resume needs a sound checkpoint, and none is: "
                f"{'; '.join(message for _, message in damaged)}. Train anew with --overwrite"
            )
        return 0, None, MetricsFile(self.path / "metrics.jsonl")
