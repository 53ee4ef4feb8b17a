"""Figures of results: learning curves, bars, frontiers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from ape_jax.algorithms.common import Metrics
from ape_jax.evaluation.sweep import Sweep

EXPERT_COLOUR, OBSERVER_COLOUR = "#1f5fa8", "#c8442d"


def panels(rows: int, columns: int, width: float, height: float, **shared: Any):
    """A figure, and its axes [rows, columns] with a light grid."""
    size = (width, height)
    figure, grid = plt.subplots(
        rows, columns, figsize=size, squeeze=False, layout="constrained", **shared
    )
    for axes in grid.flat:
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, grid


def learning_curves(runs: Mapping[str, Metrics], floor: float) -> Figure:
    """Return of the ensemble and of the observer trained against, over updates.

    The runs map titles to metrics [K, updates, …]. Lines are means over seeds, and bands reach from
    the lowest to the highest seed. The axis ends at the lowest possible return, ``floor``.
    """
    figure, grid = panels(1, len(runs), 3.4 * len(runs), 3.2, sharey=True)
    for axes, (title, metrics) in zip(grid[0], runs.items(), strict=True):
        _experts_and_observer(axes, metrics.pe_return.T, metrics.observer_return.T)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("update")
    grid[0, 0].set_ylabel("return of an episode")
    grid[0, 0].set_ylim(floor * 1.02, 0)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def run_curves(runs: Mapping[str, list[dict]]) -> Figure:
    """Returns over updates, a column for each run: experts and observer, then every expert.

    The runs map names to the lines of ``metrics.jsonl``; what is null there is left open.
    """
    figure, grid = panels(2, len(runs), 4.2 * len(runs), 5.2, sharex="col", sharey="row")
    for axes, (name, rows) in zip(grid.T, runs.items(), strict=True):
        experts = np.array([row["expert_returns"] for row in rows], float)  # [U, K, E]
        observer = np.array([row["observer_return"] for row in rows], float)
        _experts_and_observer(axes[0], experts.mean(axis=2), observer)
        for expert in range(experts.shape[2]):
            colour = plt.cm.viridis(expert / max(experts.shape[2] - 1, 1) * 0.85)
            _curve_with_range(axes[1], experts[:, :, expert], colour, f"expert {expert + 1}")
        title = f"{name}\n{experts.shape[1]} seed(s)"
        axes[0].set_title(title, fontsize=10, parse_math=False)
        axes[1].set_xlabel("update")
    for line in grid:
        line[0].set_ylabel("return of an episode")
        line[0].legend(fontsize=7.5, ncols=2)
    return figure


def _experts_and_observer(axes: Axes, experts: ArrayLike, observer: ArrayLike) -> None:
    """Returns [U, K] over updates."""
    _curve_with_range(axes, experts, EXPERT_COLOUR, "experts, J(PE)")
    _curve_with_range(axes, observer, OBSERVER_COLOUR, "observer trained against")


def _curve_with_range(axes: Axes, values: ArrayLike, colour: Any, label: str) -> None:
    """Mean over seeds of values [U, K] and their range, smoothed alike."""
    values = np.asarray(values)
    known = np.isfinite(values).all(axis=1)
    updates, curve = np.flatnonzero(known), _smooth(values[known].T)
    axes.fill_between(updates, curve.min(axis=0), curve.max(axis=0), color=colour, alpha=0.2, lw=0)
    axes.plot(updates, curve.mean(axis=0), color=colour, label=label, lw=1.6)


def _smooth(values: np.ndarray, width: int = 10) -> np.ndarray:
    """Means of up to ``width`` updates, ending at each."""
    sums = np.cumsum(np.pad(values, ((0, 0), (1, 0))), axis=1)
    ends = np.arange(1, values.shape[1] + 1)
    begins = np.maximum(ends - width, 0)
    return (sums[:, ends] - sums[:, begins]) / (ends - begins)


def frontier(sweep: Sweep) -> Figure:
    """PE return against clone return over β, from samples and exactly."""
    observers = list(dict.fromkeys(point.observer for point in sweep.points))
    figure, grid = panels(1, len(observers), 4.6 * len(observers), 4.3, sharey=True)
    styles = {"exact": (EXPERT_COLOUR, "s", "--"), "sampled": (OBSERVER_COLOUR, "o", "-")}
    for axes, observer in zip(grid[0], observers, strict=True):
        own = [point for point in sweep.points if point.observer == observer]
        own.sort(key=lambda point: point.beta)
        for training, (colour, marker, line) in styles.items():
            points = [point for point in own if point.training == training]
            x, y = ([getattr(p, f"{who}_return").mean for p in points] for who in ("pe", "clone"))
            axes.plot(x, y, color=colour, ls=line, marker=marker, ms=5, label=training, zorder=3)
            for point in points:
                seeds = point.pe_return.values, point.clone_return.values
                axes.scatter(*seeds, s=9, color=colour, alpha=0.35, lw=0, marker=marker)
                if training == "sampled":
                    place = (point.pe_return.mean, point.clone_return.mean)
                    style = {"textcoords": "offset points", "fontsize": 7.5, "color": colour}
                    axes.annotate(f"{point.beta:g}", place, xytext=(5, 4), **style)
        # The means set the limits, so that a seed far away does not squeeze the rest.
        pe_returns = [point.pe_return.mean for point in own]
        room = max(0.06 * (max(pe_returns) - min(pe_returns)), 0.1)
        ends = (min(pe_returns) - room, max(pe_returns) + room)
        axes.plot(ends, ends, color="grey", lw=0.9, ls=":", label="clone as good as PE", zorder=1)
        axes.set_xlim(ends)
        axes.set_title(f"against the {observer} observer", fontsize=10)
        axes.set_xlabel("return of the ensemble (PE)")
    grid[0, 0].set_ylabel("return of its clone")
    grid[0, 0].legend(frameon=False, fontsize=9)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure, crisp where it is a bitmap, and close it."""
    figure.savefig(path, dpi=160)
    plt.close(figure)
