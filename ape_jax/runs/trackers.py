"""Callbacks that send a run's curves to other programs: TensorBoard, and Weights & Biases."""

import abc
import importlib.util
import logging
import uuid
from collections.abc import Iterator, Mapping

import numpy as np

from ape_jax.algorithms.common import Metrics
from ape_jax.runs.callbacks import Callback
from ape_jax.runs.directory import TENSORBOARD, WANDB_ID, RunDirectory
from ape_jax.training.trainer import Chunk
from ape_jax.types import RunError, SettingError

log = logging.getLogger(__name__)


class Tracker(Callback):
    """Sends the scalars of every update; after its first failure it is left alone, with a warning.

    It starts with the first chunk, because only then is an old run in the directory replaced.
    """

    name: str
    """What messages call it."""

    def __init__(self, run: RunDirectory):
        """Send nothing yet."""
        self.run = run
        self._started = self._failed = False

    @abc.abstractmethod
    def start(self) -> None:
        """Open the files or the connection."""

    @abc.abstractmethod
    def log(self, update: int, scalars: Mapping[str, float]) -> None:
        """Send the scalars of one update."""

    @abc.abstractmethod
    def close(self) -> None:
        """Write or send what is still waiting."""

    def __call__(self, chunk: Chunk) -> None:
        """Send every update of a chunk.

        Raises:
          RunError: the tracker does not start.
        """
        if not self._started:
            try:
                self.start()
            except Exception as error:  # Whatever the other program raises.
                raise RunError(
                    f"{self.name} does not start ({type(error).__name__}: {error}). "
                    "Train without it"
                ) from None
            self._started = True
        if self._failed:
            return
        try:
            for offset, scalars in enumerate(scalars_of(chunk.metrics)):
                self.log(chunk.first_update + offset, scalars)
        except Exception as error:
            log.warning("%s gets no more curves: %s", self.name, error)
            self._failed = True

    def __exit__(self, *error) -> None:
        """Close it."""
        if not self._started or self._failed:
            return
        try:
            self.close()
        except Exception as error:
            log.warning("%s did not close: %s", self.name, error)


class TensorBoard(Tracker):
    """Writes event files in ``RUN/tensorboard``, with tensorboardX."""

    name = "TensorBoard"

    def start(self) -> None:
        """Continue from the run's first update; what the files hold of later ones is hidden."""
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(
            str(self.run.path / TENSORBOARD), purge_step=self.run.start.num_done or None
        )

    def log(self, update: int, scalars: Mapping[str, float]) -> None:
        """Add a point to every curve."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, update)

    def close(self) -> None:
        """Flush the files."""
        self._writer.close()


class WeightsAndBiases(Tracker):
    """Sends a run to a project; ``WANDB_MODE=offline`` keeps it in ``RUN/wandb`` instead."""

    name = "Weights & Biases"

    def __init__(self, run: RunDirectory, project: str):
        """Send nothing yet."""
        super().__init__(run)
        self.project = project

    def start(self) -> None:
        """Start the project's run for this directory, or continue it."""
        import wandb

        remembered = self.run.path / WANDB_ID
        if not remembered.exists():
            remembered.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
        self._run = wandb.init(
            project=self.project,
            id=remembered.read_text(encoding="utf-8"),
            name=self.run.path.name,
            dir=self.run.path,
            config=self.run.config.to_flat(),
            resume="allow",
        )

    def log(self, update: int, scalars: Mapping[str, float]) -> None:
        """Add a point to every curve."""
        self._run.log(dict(scalars), step=update)

    def close(self) -> None:
        """Wait until everything is written or sent."""
        self._run.finish()


def scalars_of(metrics: Metrics) -> Iterator[dict[str, float]]:
    """Yield the scalars of each update: means over seeds, without those that are not finite.

    Args:
      metrics: arrays [K, updates, …].
    """
    columns = {name: np.asarray(x) for name, x in metrics._asdict().items() if x is not None}
    columns["gap"] = columns["pe_return"] - columns["observer_return"]
    for name in ("expert_returns", "multipliers"):
        if name in columns:
            each = columns.pop(name)
            for expert in range(each.shape[-1]):
                columns[f"{name}/{expert + 1}"] = each[..., expert]
    for update in range(columns["pe_return"].shape[1]):
        at = {name: values[:, update] for name, values in columns.items()}
        yield {name: float(x.mean()) for name, x in at.items() if np.isfinite(x).all()}


def check(tensorboard: bool, wandb: str | None) -> None:
    """Check that the trackers that are asked for are installed.

    Args:
      tensorboard: whether TensorBoard is asked for.
      wandb: the project of Weights & Biases that is asked for, if any.

    Raises:
      SettingError: one is not installed, or the project has no name.
    """
    if wandb is not None and not wandb.strip():
        raise SettingError(f"wandb must be the name of a project; got {wandb!r}")
    wanted = {"tensorboard": tensorboard, "wandb": wandb is not None}
    for flag, module in (("tensorboard", "tensorboardX"), ("wandb", "wandb")):
        if wanted[flag] and importlib.util.find_spec(module) is None:
            raise SettingError(
                f"{flag} needs {module}, which is not installed; pip install 'ape-jax[{flag}]'"
            )
