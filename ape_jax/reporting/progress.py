"""Progress bars on the terminal."""

import jax.numpy as jnp
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

from ape_jax.algorithms.common import Metrics
from ape_jax.evaluation.progress import Progress


class ProgressBars:
    """A progress callback that shows one bar for each task; a context manager."""

    def __init__(self, console: Console):
        """Show nothing yet: later counts, the current returns, and times."""
        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[returns]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "ProgressBars":
        self._bars.start()
        return self

    def __exit__(self, *_) -> None:
        self._bars.stop()

    def __call__(self, progress: Progress) -> None:
        """Show how far a task is."""
        if progress.task not in self._tasks:
            self._tasks[progress.task] = self._bars.add_task(progress.task, total=None, returns="")
        status = progress.status if progress.metrics is None else describe_returns(progress.metrics)
        task = self._tasks[progress.task]
        self._bars.update(task, completed=progress.done, total=progress.total, returns=status)


def describe_returns(metrics: Metrics) -> str:
    """The newest returns of metrics [K, updates, …], averaged over seeds."""
    pe_return = jnp.mean(metrics.pe_return[:, -1])
    worst = jnp.mean(jnp.min(metrics.expert_returns[:, -1], axis=-1))
    text = f"PE {pe_return:.2f}  worst expert {worst:.2f}"
    observer_return = jnp.mean(metrics.observer_return[:, -1])
    return text if jnp.isnan(observer_return) else f"{text}  observer {observer_return:.2f}"
