"""The host's side of a training that can be stopped at any time, and gone on with."""

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Iterator

import numpy as np
from rich.console import Console

from ape_jax.algorithms import TrainState
from ape_jax.algorithms.common import Metrics
from ape_jax.config import RunConfig
from ape_jax.runs.checkpoint import Saver, path_of, saved_updates
from ape_jax.runs.directory import RunDirectory
from ape_jax.runs.live import LiveView
from ape_jax.runs.trackers import Trackers
from ape_jax.training import guards
from ape_jax.training.trainer import Chunk, Trainer, seed_keys
from ape_jax.types import NonFiniteError, RunError

SAVE_SECONDS = 30.0
"""Between two checkpoints, where no number of updates is given."""


@dataclasses.dataclass(frozen=True)
class Watching:
    """Who is shown a training."""

    console: Console
    """Where the live view and messages go."""
    quiet: bool = False
    """Whether warnings alone are shown."""
    tensorboard: bool = False
    """Whether curves are written for TensorBoard."""
    wandb: str | None = None
    """Project."""


class Interrupted(Exception):  # noqa: N818
    """Training was stopped from outside; what it had done is saved."""

    def __init__(self, num_done: int, code: int):
        """After so many updates; ``code`` is for the process to exit with."""
        super().__init__(num_done)
        self.num_done, self.code = num_done, code


class Terminated(KeyboardInterrupt):
    """SIGTERM, to be answered as Ctrl-C is."""


def code_of(stop: KeyboardInterrupt) -> int:
    """What a process exits with, by convention."""
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


def train(
    runner: Trainer,
    config: RunConfig,
    run: RunDirectory,
    saver: Saver,
    watching: Watching,
    resume: bool,
) -> TrainState:
    """Train to the end, chunk by chunk; save on the way, and before leaving early.

    Args:
      runner: of the task.
      config: of the run.
      run: its directory.
      saver: of its checkpoints; at the end the last may still be being written.
      watching: who is shown what.
      resume: whether to go on with what the directory holds.

    Returns:
      The last state [K, …].

    Raises:
      SettingError: there is nothing sound to resume.
      Interrupted: by Ctrl-C or SIGTERM.
      RunError: numbers are not finite any more.
      OSError: the disk takes no more of them.
    """
    num_done, state, metrics_file = 0, None, None
    if resume:
        num_done, state, metrics_file = run.go_on(config, runner.task)
    elif not run.holds_run:  # Else the old one goes when there is something to replace it.
        metrics_file = run.begin(config)
    due = _Due(config.save_every, num_done)
    told: Trackers | None = None
    view = LiveView(runner.task, config.seeds, num_done, watching.console, watching.quiet)
    last: tuple[Chunk, dict] | None = None  # With how the metrics begin, up to its end.

    def save(chunk: Chunk, mark: dict) -> None:
        saver.save(chunk.num_done, chunk.state, score_of(chunk.metrics, config), mark)
        due.saved(chunk.num_done)

    keys = seed_keys(config.first_seed, config.seeds)
    try:
        with view:
            for chunk in runner.chunks(keys, config.hypers, state, num_done, config.chunk):
                if metrics_file is None:
                    metrics_file = run.begin(config)
                if told is None:
                    asked = watching.tensorboard, watching.wandb
                    told = Trackers(run.path, config, num_done, *asked)
                first = last[0].num_done if last else num_done
                metrics_file.append(chunk.metrics, first)
                guards.check(chunk.metrics, chunk.state, first)
                last = chunk, metrics_file.mark()
                view.show(chunk)
                told.tell(chunk.metrics, first)
                if due.at(chunk.num_done) or chunk.num_done == chunk.num_updates:
                    save(*last)
    except KeyboardInterrupt as stop:
        with deaf():
            if last is not None and due.since(last[0].num_done):
                save(*last)
            saver.wait()
        done = num_done if last is None else last[0].num_done
        raise Interrupted(done, code_of(stop)) from None
    except NonFiniteError as error:
        saver.wait()
        raise RunError(f"{error}. {_last_good(run)}") from None
    except OSError:
        saver.wait()
        raise
    finally:
        if told is not None:
            told.close()
    if last is not None:
        return last[0].state
    assert state is not None, "a run has updates"
    return state


class _Due:
    """When a checkpoint is."""

    def __init__(self, save_every: int | None, num_done: int):
        self._every = save_every
        self.saved(num_done)

    def saved(self, num_done: int) -> None:
        self._last, self._time = num_done, time.monotonic()

    def since(self, num_done: int) -> bool:
        return num_done > self._last

    def at(self, num_done: int) -> bool:
        if self._every is None:
            return time.monotonic() - self._time >= SAVE_SECONDS
        return num_done - self._last >= self._every


def score_of(metrics: Metrics, config: RunConfig) -> list[float]:
    """How good a chunk is, compared as lists are: first the constraint, then the objective.

    The objective is J(PE) − β J(π_o), or −J(π_o) where a return is to be kept, over the updates
    that know them: a return is nan until episodes have ended. The list is empty, the least there
    is, where none does.
    """
    train, hypers = config.train, config.hypers
    terms = {"pe": metrics.pe_return, "worst": np.min(metrics.expert_returns, axis=-1)}
    if train.observer != "none":
        terms["observer"] = metrics.observer_return
    known = np.all([np.isfinite(term) for term in terms.values()], axis=0)
    if not known.any():
        return []
    means = {name: float(np.mean(np.asarray(term)[known])) for name, term in terms.items()}
    observer_return = means.get("observer", 0.0)
    if hypers.min_return is None:
        return [0.0, means["pe"] - float(hypers.beta) * observer_return]
    return [min(0.0, means["worst"] - float(hypers.min_return)), -observer_return]


def _last_good(run: RunDirectory) -> str:
    saved = saved_updates(run.path)
    if not saved:
        return "No checkpoint was saved before it"
    return f"The last good checkpoint is {path_of(run.path, saved[-1])}, after {saved[-1]} updates"


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """SIGTERM raises as Ctrl-C does."""

    def stop(number, frame):
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield  # Signals are the main thread's.
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def deaf() -> Iterator[None]:
    """Another Ctrl-C or SIGTERM is not heard: what is being saved takes a moment."""
    signals = [signal.SIGINT, signal.SIGTERM]
    if threading.current_thread() is not threading.main_thread():
        signals = []
    before = [signal.signal(number, signal.SIG_IGN) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
