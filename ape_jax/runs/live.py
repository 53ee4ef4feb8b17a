"""What a person sees of a training while it runs."""

import time

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from ape_jax.algorithms import steps_per_update
from ape_jax.algorithms.task import Task
from ape_jax.training.trainer import Chunk, progress_bar


class LiveView:
    """A bar, and below it the newest return of each expert, the observer, the gap, the speed.

    Returns are means over seeds. Nothing is shown where ``quiet``.
    """

    def __init__(self, task: Task, seeds: int, first_update: int, console: Console, quiet: bool):
        """Show nothing yet; to be used as a context."""
        self._steps = seeds * steps_per_update(task)
        self._bar = progress_bar(console)
        self._training = self._bar.add_task(
            "compiling", total=task.config.num_updates, completed=first_update, returns=""
        )
        self._live = Live(self._bar, console=console, refresh_per_second=4)
        self._quiet = quiet
        self._before = (first_update, time.monotonic())

    def __enter__(self) -> "LiveView":
        """Begin to show."""
        if not self._quiet:
            self._live.start()
        return self

    def __exit__(self, *error) -> None:
        """Leave what was shown last."""
        if not self._quiet:
            self._live.stop()

    def show(self, chunk: Chunk) -> None:
        """What is new."""
        num_done, started = self._before
        self._before = (chunk.num_done, time.monotonic())
        speed = (chunk.num_done - num_done) * self._steps / (self._before[1] - started)
        self._bar.update(self._training, completed=chunk.num_done, description="training")
        self._live.update(Group(self._bar, returns_table(chunk, speed)))


def returns_table(chunk: Chunk, speed: float) -> Table:
    """Newest returns, and environment steps a second."""
    newest = {
        name: np.asarray(getattr(chunk.metrics, name))[:, -1].mean(axis=0)
        for name in ("pe_return", "expert_returns", "observer_return")
    }
    table = Table(box=None, pad_edge=False, header_style="dim")
    cells = {"PE": newest["pe_return"]}
    experts = newest["expert_returns"]
    if len(experts) <= 6:
        cells |= {f"expert {index + 1}": value for index, value in enumerate(experts)}
    else:
        cells |= {"worst expert": experts.min(), "best": experts.max()}
    if np.isfinite(newest["observer_return"]):
        cells |= {
            "observer": newest["observer_return"],
            "gap": newest["pe_return"] - newest["observer_return"],
        }
    for name in (*cells, "steps / s"):
        table.add_column(name, justify="right")
    table.add_row(*(f"{value:.2f}" for value in cells.values()), f"{speed:,.0f}")
    return table
