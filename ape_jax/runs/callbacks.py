"""Objects that look at a training between two chunks: the guard, the live view, and trackers."""

import abc
import contextlib
import time

import numpy as np
from rich import progress
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from ape_jax.algorithms import steps_per_update
from ape_jax.algorithms.task import Task
from ape_jax.runs.directory import RunDirectory
from ape_jax.training import guards
from ape_jax.training.trainer import Chunk
from ape_jax.types import NonFiniteError, RunError


class Callback(contextlib.AbstractContextManager["Callback"], abc.ABC):
    """Called with every chunk of a training, in the order in which updates are made.

    It is entered before the first chunk is computed, and left after the last one or an error.
    """

    @abc.abstractmethod
    def __call__(self, chunk: Chunk) -> None:
        """Look at a chunk, whose metrics are already on disk and whose state is not saved yet."""

    def __exit__(self, *error) -> None:
        """Stop."""


class FiniteGuard(Callback):
    """Ends a training as soon as a loss or a parameter is not finite."""

    def __init__(self, run: RunDirectory):
        self.run = run

    def __call__(self, chunk: Chunk) -> None:
        """Check a chunk, and raise RunError if a number in it is not finite."""
        try:
            guards.check(chunk.metrics, chunk.state, chunk.first_update)
        except NonFiniteError as error:
            raise RunError(f"{error}. {self.run.last_checkpoint()}") from None


class LiveView(Callback):
    """A progress bar on the terminal, and below it the speed and the newest returns over seeds."""

    def __init__(self, task: Task, seeds: int, first_update: int, console: Console):
        """Show nothing yet; ``first_update`` updates were done before the training starts."""
        self._steps = seeds * steps_per_update(task)
        bar = progress.TextColumn("{task.description}"), progress.BarColumn(bar_width=24)
        times = progress.TimeElapsedColumn(), progress.TimeRemainingColumn()
        self._bar = progress.Progress(*bar, progress.MofNCompleteColumn(), *times, console=console)
        self._training = self._bar.add_task(
            "compiling", total=task.config.num_updates, completed=first_update
        )
        self._live = Live(self._bar, console=console, refresh_per_second=4)
        self._started = time.monotonic()

    def __enter__(self) -> "LiveView":
        """Start to show the bar."""
        self._live.start()
        return self

    def __exit__(self, *error) -> None:
        """Leave the last view on the terminal."""
        self._live.stop()

    def __call__(self, chunk: Chunk) -> None:
        """Show the newest numbers."""
        seconds = time.monotonic() - self._started
        self._started += seconds
        speed = (chunk.num_done - chunk.first_update) * self._steps / seconds
        live_speed = float(np.sum(chunk.metrics.live_steps)) / seconds
        self._bar.update(self._training, completed=chunk.num_done, description="training")
        self._live.update(Group(self._bar, returns_table(chunk, speed, live_speed)))


def returns_table(chunk: Chunk, speed: float, live_speed: float) -> Table:
    """The newest returns of a chunk, and environment steps per second.

    Live steps leave out those that pad episodes to the time limit.
    """
    metrics = chunk.metrics
    pe, experts, observer = (
        np.asarray(returns)[:, -1].mean(axis=0)
        for returns in (metrics.pe_return, metrics.expert_returns, metrics.observer_return)
    )
    table = Table(box=None, pad_edge=False, header_style="dim")
    cells = {"PE": pe}
    if len(experts) <= 6:
        cells |= {f"expert {index + 1}": value for index, value in enumerate(experts)}
    else:
        cells |= {"worst expert": experts.min(), "best": experts.max()}
    if np.isfinite(observer):
        cells |= {"observer": observer, "gap": pe - observer}
    for name in (*cells, "steps / s", "live steps / s"):
        table.add_column(name, justify="right")
    speeds = f"{speed:,.0f}", f"{live_speed:,.0f}"
    table.add_row(*(f"{value:.2f}" for value in cells.values()), *speeds)
    return table
