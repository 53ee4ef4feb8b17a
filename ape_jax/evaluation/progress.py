"""Progress of a long computation, and a training that reports it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key

from ape_jax.algorithms import TrainState
from ape_jax.algorithms.common import Metrics
from ape_jax.algorithms.task import Task
from ape_jax.config import Hypers
from ape_jax.training import guards
from ape_jax.training.trainer import Trainer


class Progress(NamedTuple):
    """The progress of a long computation."""

    task: str
    """Name of the computation; each name gets its own progress bar."""
    done: int
    total: int | None
    """None where it is not known yet."""
    status: str = ""
    metrics: Metrics | None = None
    """The newest metrics of training [K, updates, …]."""


ProgressFn = Callable[[Progress], None]


def ignore_progress(progress: Progress) -> None:
    """Do nothing: the progress callback of those who give none."""


def train(
    name: str,
    task: Task,
    keys: Key[Array, " K"],
    hypers: Hypers,
    progress: ProgressFn,
    sweep: bool = False,
) -> tuple[TrainState, Metrics]:
    """Train one ensemble for each key, side by side, and report progress under a name.

    In a sweep every seed has its own hyperparameters, which are then arrays [K].

    Returns:
      The states [K, …] after training, and the metrics [K, updates, …].

    Raises:
      NonFiniteError: losses or parameters are not finite any more.
    """
    progress(Progress(name, 0, None, "compiling"))
    parts = []
    for chunk in Trainer(task, sweep=sweep).chunks(keys, hypers):
        guards.check(chunk.metrics, chunk.state, chunk.first_update)
        parts.append(chunk.metrics)
        progress(Progress(name, chunk.num_done, chunk.num_updates, metrics=chunk.metrics))
    return chunk.state, jax.tree.map(lambda *x: np.concatenate(x, axis=1), *parts)
