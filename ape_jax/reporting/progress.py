"""Progress bars on the terminal."""

import contextlib
from collections.abc import Iterator

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
from ape_jax.evaluation.progress import Progress, ProgressFn


@contextlib.contextmanager
def progress_bars(console: Console) -> Iterator[ProgressFn]:
    """A progress callback that shows one bar for each task."""
    tasks: dict[str, TaskID] = {}
    with RichProgress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[returns]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    ) as bars:

        def show(progress: Progress) -> None:
            if progress.task not in tasks:
                tasks[progress.task] = bars.add_task(progress.task, total=None, returns="")
            metrics = progress.metrics
            text = progress.status if metrics is None else describe_returns(metrics)
            task = tasks[progress.task]
            bars.update(task, completed=progress.done, total=progress.total, returns=text)

        yield show


def describe_returns(metrics: Metrics) -> str:
    """The newest returns of metrics [K, updates, …], averaged over seeds."""
    pe_return = jnp.mean(metrics.pe_return[:, -1])
    worst = jnp.mean(jnp.min(metrics.expert_returns[:, -1], axis=-1))
    text = f"PE {pe_return:.2f}  worst expert {worst:.2f}"
    observer_return = jnp.mean(metrics.observer_return[:, -1])
    return text if jnp.isnan(observer_return) else f"{text}  observer {observer_return:.2f}"
