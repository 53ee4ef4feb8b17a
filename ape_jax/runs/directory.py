"""The directory of a run: locked by one process, and written while that process trains."""

import contextlib
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from ape_jax.algorithms import TrainState
from ape_jax.algorithms.task import Task
from ape_jax.config import RunConfig
from ape_jax.networks import EnsembleParams
from ape_jax.runs import checkpoint
from ape_jax.runs.metrics import MetricsFile, write_json
from ape_jax.runs.output import Output, holds_run
from ape_jax.runs.saver import Saver
from ape_jax.training.trainer import Chunk
from ape_jax.types import DamagedError, SettingError

log = logging.getLogger(__name__)

SAVE_SECONDS = 30.0
"""Time between two checkpoints, where ``save_every`` gives no number of updates."""

TENSORBOARD, WANDB_ID = "tensorboard", ".wandb-id"
"""TensorBoard's folder in a run, and the file with the name that Weights & Biases has for it."""


class Start(NamedTuple):
    """Where a training starts."""

    num_done: int = 0
    """Updates done before it."""
    state: TrainState | None = None
    """The state [K, …] after them; None at the beginning of a run."""


class RunDirectory:
    """The files of one run while it is trained; ``open`` makes one.

    Training starts from ``start``, and the metrics of ``num_done`` updates are written.
    """

    @classmethod
    @contextlib.contextmanager
    def open(cls, output: Output, config: RunConfig, task: Task) -> Iterator["RunDirectory"]:
        """Lock a directory, and start or resume a run in it.

        At the end of the context, whatever ends it, the last checkpoint is complete and the
        directory, which must exist, is free. An old run is replaced only when the first chunk is
        there to replace it.

        Raises:
          SettingError: another process is writing there, the directory holds a run already, or
            there is no sound checkpoint to resume from.
        """
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(FileLock(output.path / ".lock", blocking=False))
            except Timeout:
                raise SettingError(
                    f"out must not be in use; another process is writing to {output.path}. Wait "
                    "for it, or choose another --out"
                ) from None
            run = cls(output, config, task)
            held.callback(run.wait)
            yield run

    def __init__(self, output: Output, config: RunConfig, task: Task):
        """Start or resume a run; the caller holds the lock."""
        output.check_free()
        self.path, self.config = output.path, config
        self._saver = Saver(output.path, config, output.keep)
        self._metrics: MetricsFile | None = None
        self.start = self._resume(task) if output.resume else Start()
        if not holds_run(self.path):
            self._begin()
        self.num_done = self._num_saved = self.start.num_done
        self._saved_at = time.monotonic()

    def _begin(self) -> MetricsFile:
        """Write the settings of a new run, and delete what is left of an old one."""
        (self.path / "summary.json").unlink(missing_ok=True)
        for folder in (checkpoint.folder_of(self.path), self.path / TENSORBOARD):
            shutil.rmtree(folder, ignore_errors=True)
        (self.path / WANDB_ID).unlink(missing_ok=True)
        self.config.save(self.path / "config.yaml")
        self._metrics = MetricsFile(self.path / "metrics.jsonl")
        return self._metrics

    def _resume(self, task: Task) -> Start:
        """Find the newest sound checkpoint, and set damaged ones aside."""
        for left in checkpoint.folder_of(self.path).glob(f"*{checkpoint.UNFINISHED}"):
            shutil.rmtree(left, ignore_errors=True)
        start, damaged = find_start(self.path, self.config, task)
        for path, message in damaged:
            sound = checkpoint.path_of(self.path, start.num_done)
            log.warning("%s; resuming from the newest sound checkpoint, %s", message, sound)
            path.rename(path.with_name(path.name + ".damaged"))
        if start.state is not None:
            self._metrics = MetricsFile(self.path / "metrics.jsonl", start.num_done)
        return start

    def append(self, chunk: Chunk) -> None:
        """Write the metrics of a chunk."""
        file = self._begin() if self._metrics is None else self._metrics
        file.append(chunk.metrics, chunk.first_update)
        self.num_done = chunk.num_done

    def due(self, chunk: Chunk) -> bool:
        """Whether the state after a chunk is to be saved: at the end, and now and then before."""
        if chunk.num_done == chunk.num_updates:
            return True
        if self.config.save_every is None:
            return time.monotonic() - self._saved_at >= SAVE_SECONDS
        return chunk.num_done - self._num_saved >= self.config.save_every

    def save(self, chunk: Chunk) -> None:
        """Start to write a checkpoint in the background; training need not wait for it."""
        self._saver.save(chunk)
        self._num_saved, self._saved_at = chunk.num_done, time.monotonic()

    def wait(self) -> None:
        """Wait until the last checkpoint is written."""
        self._saver.wait()

    def last_checkpoint(self) -> str:
        """A sentence that names the newest checkpoint."""
        self.wait()
        saved = checkpoint.saved_updates(self.path)
        if not saved:
            return "No checkpoint was saved before it"
        path = checkpoint.path_of(self.path, saved[-1])
        return f"The last checkpoint is {path}, after {saved[-1]} updates"

    def save_params(self, params: EnsembleParams) -> None:
        """Write the final parameters [K, …]."""
        self.wait()
        final = checkpoint.folder_of(self.path) / checkpoint.FINAL
        about = {"config": self.config.to_flat(), "update": self.config.train.num_updates}
        checkpoint.write(final, checkpoint.named(params), about)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write what the evaluation of the final parameters found; the run is then finished."""
        write_json(self.path / "summary.json", summary)


def is_finished(path: Path) -> bool:
    """Whether a run was trained to its end and evaluated, and its parameters can be read."""
    with contextlib.suppress(DamagedError):
        checkpoint.verify(checkpoint.folder_of(path) / checkpoint.FINAL)
        return (path / "summary.json").exists()
    return False


def find_start(path: Path, config: RunConfig, task: Task) -> tuple[Start, list[tuple[Path, str]]]:
    """Find the newest sound checkpoint of a run whose metrics are sound too; changes nothing.

    A run without checkpoints starts again from its beginning.

    Returns:
      Where to resume, and every newer checkpoint with what is wrong with it.

    Raises:
      SettingError: no checkpoint is sound, or one was saved with other settings.
    """
    damaged = []
    for num_done in reversed(checkpoint.saved_updates(path)):
        try:
            state = checkpoint.load_state(path, config, task, num_done)
            MetricsFile.check(path / "metrics.jsonl", num_done)
        except DamagedError as error:
            damaged.append((checkpoint.path_of(path, num_done), str(error)))
            continue
        return Start(num_done, state), damaged
    if damaged:
        raise SettingError(
            "resume needs a sound checkpoint, and there is none: "
            f"{'; '.join(message for _, message in damaged)}. Train again with --overwrite"
        )
    return Start(), []
