"""Other programs that watch a run: TensorBoard, and Weights & Biases. Both are extras."""

import importlib.util
import logging
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from ape_jax.algorithms.common import Metrics
from ape_jax.config import RunConfig
from ape_jax.types import RunError, SettingError

log = logging.getLogger(__name__)

TENSORBOARD = "tensorboard"
"""Folder in a run's directory."""

WANDB_ID = ".wandb-id"
"""File in a run's directory: which run of Weights & Biases it is."""


class Tracker(Protocol):
    """Is told the scalars of every update."""

    name: str
    """As messages say it."""

    def log(self, update: int, scalars: Mapping[str, float]) -> None:
        """Of one update."""
        ...

    def close(self) -> None:
        """After the last of them."""
        ...


def scalars_of(metrics: Metrics) -> Iterator[dict[str, float]]:
    """What trackers are told of each update: means over seeds, of what is known.

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


class TensorBoard:
    """Event files in ``RUN/tensorboard``, by tensorboardX."""

    name = "TensorBoard"

    def __init__(self, run: Path, first_update: int):
        """Go on from an update: what the files hold of later ones is hidden."""
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(run / TENSORBOARD), purge_step=first_update or None)

    def log(self, update: int, scalars: Mapping[str, float]) -> None:
        """A point of every curve."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, update)

    def close(self) -> None:
        """Flush."""
        self._writer.close()


class WeightsAndBiases:
    """A run of a project; ``WANDB_MODE=offline`` keeps it in ``RUN/wandb`` until it is synced."""

    name = "Weights & Biases"

    def __init__(self, run: Path, project: str, config: RunConfig):
        """Begin, or go on with, the run that belongs to what the directory holds."""
        import wandb

        remembered = run / WANDB_ID
        if not remembered.exists():
            remembered.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
        self._run = wandb.init(
            project=project,
            id=remembered.read_text(encoding="utf-8"),
            name=run.name,
            dir=run,
            config=config.to_flat(),
            resume="allow",
        )

    def log(self, update: int, scalars: Mapping[str, float]) -> None:
        """A point of every curve."""
        self._run.log(dict(scalars), step=update)

    def close(self) -> None:
        """Wait until all is written, or sent."""
        self._run.finish()


def check(tensorboard: bool, wandb: str | None) -> None:
    """Whether what is asked for is installed.

    Raises:
      SettingError: it is not.
    """
    if wandb is not None and not wandb.strip():
        raise SettingError(f"wandb must be the name of a project; got {wandb!r}")
    wanted = {"tensorboard": tensorboard, "wandb": wandb is not None}
    for flag, module in (("tensorboard", "tensorboardX"), ("wandb", "wandb")):
        if wanted[flag] and importlib.util.find_spec(module) is None:
            raise SettingError(
                f"{flag} needs {module}, which is not installed; pip install 'ape-jax[{flag}]'"
            )


class Trackers:
    """Those that are asked for; one that fails is told of, and not asked again."""

    def __init__(
        self, run: Path, config: RunConfig, first_update: int, tensorboard: bool, wandb: str | None
    ):
        """Start them.

        Raises:
          RunError: one does not start.
        """
        self._all: list[Tracker] = []
        try:
            if tensorboard:
                self._all.append(TensorBoard(run, first_update))
            if wandb is not None:
                self._all.append(WeightsAndBiases(run, wandb, config))
        except Exception as error:  # Whatever other programs raise.
            raise RunError(
                f"curves cannot be sent ({type(error).__name__}: {error}). Train without them"
            ) from None

    def tell(self, metrics: Metrics, first_update: int) -> None:
        """All updates of a chunk."""
        for tracker in tuple(self._all):
            try:
                for offset, scalars in enumerate(scalars_of(metrics)):
                    tracker.log(first_update + offset, scalars)
            except Exception as error:
                log.warning("%s is told no more: %s", tracker.name, error)
                self._all.remove(tracker)

    def close(self) -> None:
        """After the last chunk."""
        for tracker in self._all:
            try:
                tracker.close()
            except Exception as error:
                log.warning("%s did not end well: %s", tracker.name, error)
