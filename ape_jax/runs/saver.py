"""Writes checkpoints while training goes on, and deletes all but the newest and the best."""

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ape_jax.algorithms.common import Metrics
from ape_jax.config import RunConfig
from ape_jax.runs import checkpoint
from ape_jax.runs.manifest import read_score
from ape_jax.training.trainer import Chunk

log = logging.getLogger(__name__)


class Saver:
    """Writes the checkpoints of one run in a background thread, one at a time.

    If a checkpoint cannot be written, a warning is logged, training goes on, and earlier
    checkpoints stay.
    """

    def __init__(self, run: Path, config: RunConfig, keep: int):
        """Write nothing yet; ``keep`` newest checkpoints will be kept, besides the best."""
        self.run, self.config, self.keep = run, config, keep
        self._writer = ThreadPoolExecutor(1)
        self._last: Future | None = None

    def save(self, chunk: Chunk) -> None:
        """Start to write the state after a chunk; waits for the checkpoint before it."""
        self.wait()
        about = {
            "config": self.config.to_flat(),
            "update": chunk.num_done,
            "score": score_of(chunk.metrics, self.config),
        }
        arrays = checkpoint.named(chunk.state)
        self._last = self._writer.submit(self._write, chunk.num_done, arrays, about)

    def wait(self) -> None:
        """Wait until the last checkpoint is written."""
        if self._last is None:
            return
        error = self._last.exception()
        self._last = None
        if isinstance(error, OSError):
            log.warning("checkpoint not saved: %s; training goes on", error)
        elif error is not None:
            raise error

    def _write(self, num_done: int, arrays: dict[str, np.ndarray], about: dict) -> None:
        checkpoint.write(checkpoint.path_of(self.run, num_done), arrays, about)
        saved = checkpoint.saved_updates(self.run)
        paths = [checkpoint.path_of(self.run, update) for update in saved]
        for path in set(paths[: -self.keep]) - {max(paths, key=read_score)}:
            checkpoint.remove(path)


def score_of(metrics: Metrics, config: RunConfig) -> list[float]:
    """The score of a chunk. Scores compare as lists do: first the constraint, then the objective.

    The constraint is min(0, return of the worst expert − min_return). The objective is
    J(PE) − β J(π_o), or −J(π_o) with a ``min_return``. Both are means over those seeds and updates
    [K, updates] for which all returns are known; a return is nan until episodes have ended. Without
    any the score is the empty list, which is the lowest of all.
    """
    train, hypers = config.train, config.hypers
    terms = np.stack([metrics.pe_return, np.min(metrics.expert_returns, axis=-1)])
    if train.observer != "none":
        terms = np.stack([*terms, metrics.observer_return])
    known = np.isfinite(terms).all(axis=0)
    if not known.any():
        return []
    pe, worst, *others = (float(np.mean(term[known])) for term in terms)
    observer = sum(others)
    if hypers.min_return is None:
        return [0.0, pe - float(hypers.beta) * observer]
    return [min(0.0, worst - float(hypers.min_return)), -observer]
