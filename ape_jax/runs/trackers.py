"""Callbacks that send a run's curves to other programs: TensorBoard, and Weights & Biases."""

import importlib.util
import logging
import uuid
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from ape_jax.algorithms.common import Metrics
from ape_jax.runs.callbacks import Callback
from ape_jax.runs.directory import TENSORBOARD, WANDB_ID, RunDirectory
from ape_jax.training.trainer import Chunk
from ape_jax.types import RunError, SettingError

log = logging.getLogger(__name__)

Send = Callable[[Mapping[str, float], int], object]
"""Takes the scalars of one update, and its number."""
Close = Callable[[], object]
"""Writes or sends what is still waiting."""


class Tracker(Callback):
    """Sends the scalars of every update; after its first failure it is left alone, with a warning.

    It starts with the first chunk, because only then is an old run in the directory replaced.
    """

    def __init__(self, name: str, start: Callable[[], tuple[Send, Close]]):
        """Send nothing yet; messages call the tracker by its name."""
        self.name, self._start = name, start
        self._send: Send | None = None
        self._failed = False

    def __call__(self, chunk: Chunk) -> None:
        """Send every update of a chunk, or raise RunError if the tracker does not start."""
        if self._send is None:
            try:
                self._send, self._close = self._start()
            except Exception as error:  # Whatever the other program raises.
                raise RunError(
                    f"{self.name} does not start ({type(error).__name__}: {error}). "
                    "Train without it"
                ) from None
        if self._failed:
            return
        try:
            for update, scalars in enumerate(scalars_of(chunk.metrics), chunk.first_update):
                self._send(scalars, update)
        except Exception as error:
            log.warning("%s gets no more curves: %s", self.name, error)
            self._failed = True

    def __exit__(self, *error) -> None:
        """Close it."""
        if self._send is None or self._failed:
            return
        try:
            self._close()
        except Exception as error:
            log.warning("%s did not close: %s", self.name, error)


def tensorboard(run: RunDirectory) -> Tracker:
    """Write event files in ``RUN/tensorboard``, with tensorboardX."""

    def start() -> tuple[Send, Close]:
        from tensorboardX import SummaryWriter

        # What the files hold of updates after the run's start is hidden.
        writer = SummaryWriter(str(run.path / TENSORBOARD), purge_step=run.start.num_done or None)

        def send(scalars: Mapping[str, float], update: int) -> None:
            for name, value in scalars.items():
                writer.add_scalar(name, value, update)

        return send, writer.close

    return Tracker("TensorBoard", start)


def weights_and_biases(run: RunDirectory, project: str) -> Tracker:
    """Send a run to a project; ``WANDB_MODE=offline`` keeps it in ``RUN/wandb`` instead."""

    def start() -> tuple[Send, Close]:
        import wandb

        remembered = run.path / WANDB_ID
        if not remembered.exists():
            remembered.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
        started = wandb.init(
            project=project,
            id=remembered.read_text(encoding="utf-8"),
            name=run.path.name,
            dir=run.path,
            config=run.config.to_flat(),
            resume="allow",
        )
        return started.log, started.finish

    return Tracker("Weights & Biases", start)


def scalars_of(metrics: Metrics) -> Iterator[dict[str, float]]:
    """Yield means over seeds for each update of metrics [K, updates, …], where all are finite."""
    columns = {name: np.asarray(x) for name, x in metrics._asdict().items() if x is not None}
    columns["gap"] = columns["pe_return"] - columns["observer_return"]
    for name in ("expert_returns", "multipliers"):
        for expert, values in enumerate(np.moveaxis(columns.pop(name, np.empty(0)), -1, 0)):
            columns[f"{name}/{expert + 1}"] = values
    for update in range(columns["pe_return"].shape[1]):
        at = {name: values[:, update] for name, values in columns.items()}
        yield {name: float(x.mean()) for name, x in at.items() if np.isfinite(x).all()}


def check(tensorboard: bool, wandb: str | None) -> None:
    """Raise SettingError if a tracker that is asked for is not installed, or has no project."""
    if wandb is not None and not wandb.strip():
        raise SettingError(f"wandb must be the name of a project; got {wandb!r}")
    wanted = {"tensorboard": tensorboard, "wandb": wandb is not None}
    for flag, module in (("tensorboard", "tensorboardX"), ("wandb", "wandb")):
        if wanted[flag] and importlib.util.find_spec(module) is None:
            raise SettingError(
                f"{flag} needs {module}, which is not installed; pip install 'ape-jax[{flag}]'"
            )
