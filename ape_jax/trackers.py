"""Other programs that watch a run: TensorBoard, and Weights & Biases. Both are extras."""

import hashlib
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from ape_jax.config import RunConfig
from ape_jax.training import Metrics
from ape_jax.types import SettingError


class Tracker(Protocol):
    """Is told the scalars of every update."""

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

    def __init__(self, run: Path, first_update: int):
        """Go on from an update: what the files hold of later ones is hidden."""
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=first_update or None)

    def log(self, update: int, scalars: Mapping[str, float]) -> None:
        """A point of every curve."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, update)

    def close(self) -> None:
        """Flush."""
        self._writer.close()


class WeightsAndBiases:
    """A run of a project; ``WANDB_MODE=offline`` keeps it in ``RUN/wandb`` until it is synced."""

    def __init__(self, run: Path, project: str, config: RunConfig):
        """Begin, or go on with, the run that belongs to a directory."""
        import wandb

        name = hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:12]
        self._run = wandb.init(
            project=project,
            id=name,
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


def start(
    run: Path, config: RunConfig, first_update: int, tensorboard: bool, wandb: str | None
) -> list[Tracker]:
    """Those that are asked for."""
    trackers: list[Tracker] = []
    if tensorboard:
        trackers.append(TensorBoard(run, first_update))
    if wandb is not None:
        trackers.append(WeightsAndBiases(run, wandb, config))
    return trackers
