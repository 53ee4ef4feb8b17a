"""Figures: policies on the grid, and learning curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import ArrayLike

from ape_jax.algorithms.common import Metrics
from ape_jax.core.tabular import FiniteMDP, state_values
from ape_jax.envs.gridworld import MOVES, GridWorld

EXPERT_COLOUR, OBSERVER_COLOUR = "#1f5fa8", "#c8442d"

DEPLOYMENT_COLOURS = {
    "sampled": "#1f5fa8",
    "greedy": "#c8442d",
    "tempered": "#e2a13c",
    "best": "#6a4c93",
}
"""Colours of sampled, tempered, greedy and best clones."""

LINES = ("-", "--", "-.", ":")
"""Line styles of ensembles, in turn."""


def draw_policy(axes: Axes, env: GridWorld, values: np.ndarray, policy: np.ndarray, limit: float):
    """One policy on the grid: colour for the return from each cell, arrows for its actions.

    Args:
      axes: where to draw.
      env: the grid.
      values: expected return from each cell [S].
      policy: probabilities [S, A]: the length of an arrow, and the size of the dot for "stay".
        Those below 2 % are left out.
      limit: the lowest return of the colour scale.

    Returns:
      The image, for a colour bar.
    """
    size = env.size
    image = axes.imshow(values.reshape(size, size), cmap="viridis", vmin=limit, vmax=0.0)
    cells = np.delete(np.arange(size * size), env.goal[0] * size + env.goal[1])
    rows, columns = cells // size, cells % size
    for action, (down, right) in enumerate(MOVES):
        probs = np.where(policy[cells, action] < 0.02, 0.0, policy[cells, action])
        if (down, right) == (0, 0):
            axes.scatter(columns, rows, s=28 * probs, color="white", edgecolors="black", lw=0.3)
            continue
        axes.quiver(
            *(columns, rows, right * probs * 0.46, down * probs * 0.46),
            color="white",
            edgecolor="black",
            linewidth=0.25,
            angles="xy",
            scale_units="xy",
            scale=1,
            width=0.009,
            headwidth=3.2,
            headlength=3.4,
            headaxislength=3.2,
            minlength=0,
        )
    axes.text(env.goal[1], env.goal[0], "G", color="black", ha="center", va="center", weight="bold")
    axes.set_xticks([])
    axes.set_yticks([])
    return image


def policy_figure(
    env: GridWorld,
    mdp: FiniteMDP,
    rows: Mapping[str, Mapping[str, ArrayLike]],
    title: str | None,
) -> Figure:
    """Rows of policies on the grid under one colour scale.

    Args:
      env: the grid.
      mdp: the same world, for exact returns.
      rows: a label of each row to its panels; a panel's title to probabilities [S, A], or to
        several policies [E, S, A], whose values and probabilities are averaged.
      title: of the figure, if it has one.
    """
    num_columns = max(len(panels) for panels in rows.values())
    figure, grid = plt.subplots(
        len(rows),
        num_columns,
        figsize=(2.9 * num_columns + 0.9, 3.25 * len(rows) + 0.6),
        squeeze=False,
        layout="constrained",
    )
    for line, (label, panels) in zip(grid, rows.items(), strict=True):
        for axes in line[len(panels) :]:
            axes.set_axis_off()
        line[0].set_ylabel(label, fontsize=11)
        for axes, (name, policies) in zip(line, panels.items(), strict=False):
            policies = np.asarray(policies).reshape(-1, *mdp.reward.shape)
            values = np.mean(
                [np.asarray(state_values(mdp, jnp.asarray(one))) for one in policies], axis=0
            )
            image = draw_policy(axes, env, values, policies.mean(axis=0), -mdp.horizon)
            axes.set_title(f"{name}\nreturn {values @ np.asarray(mdp.start):.1f}", fontsize=10)
    figure.colorbar(image, ax=grid, shrink=0.8, pad=0.02, label="expected return from the cell")
    if title is not None:
        figure.suptitle(title, fontsize=12)
    return figure


def learning_curves(runs: Mapping[str, Metrics], floor: float | None = None) -> Figure:
    """Return of the ensemble and of the observer trained against, over updates.

    Args:
      runs: a title to the metrics [K, updates, …] of its run; a line for the mean over seeds, a
        band from the lowest to the highest seed.
      floor: lowest possible return, as the axis' lower end.
    """
    figure, grid = plt.subplots(
        1,
        len(runs),
        figsize=(3.4 * len(runs), 3.2),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, (title, metrics) in zip(grid[0], runs.items(), strict=True):
        curves = (
            ("experts, J(PE)", EXPERT_COLOUR, metrics.pe_return),
            ("observer trained against", OBSERVER_COLOUR, metrics.observer_return),
        )
        for label, colour, values in curves:
            curve = _smooth(np.asarray(values))
            updates = np.arange(curve.shape[1])
            axes.fill_between(
                updates, curve.min(axis=0), curve.max(axis=0), color=colour, alpha=0.2, lw=0
            )
            axes.plot(updates, curve.mean(axis=0), color=colour, label=label, lw=1.6)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("update")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0, 0].set_ylabel("return of an episode")
    if floor is not None:
        grid[0, 0].set_ylim(floor * 1.02, 0)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def run_curves(runs: Mapping[str, list[dict]]) -> Figure:
    """Returns over updates, a column for each run: experts and observer, then every expert.

    Args:
      runs: names to the lines of ``metrics.jsonl``; what is null there is left open.
    """
    figure, grid = plt.subplots(
        2,
        len(runs),
        figsize=(4.2 * len(runs), 5.2),
        sharex="col",
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for axes, (name, rows) in zip(grid.T, runs.items(), strict=True):
        updates = np.array([row["update"] for row in rows])
        experts = np.array([row["expert_returns"] for row in rows], float)  # [U, K, E]
        _curve_with_range(axes[0], updates, experts.mean(axis=2), EXPERT_COLOUR, "experts, J(PE)")
        observer = np.array([row["observer_return"] for row in rows], float)
        _curve_with_range(axes[0], updates, observer, OBSERVER_COLOUR, "observer trained against")
        for expert in range(experts.shape[2]):
            colour = plt.cm.viridis(expert / max(experts.shape[2] - 1, 1) * 0.85)
            _curve_with_range(
                axes[1], updates, experts[:, :, expert], colour, f"expert {expert + 1}"
            )
        title = f"{name}\n{experts.shape[1]} seed(s)"
        axes[0].set_title(title, fontsize=10, parse_math=False)
        axes[1].set_xlabel("update")
        for panel in axes:
            panel.grid(alpha=0.25)
            panel.spines[["top", "right"]].set_visible(False)
    for line in grid:
        line[0].set_ylabel("return of an episode")
        line[0].legend(fontsize=7.5, ncols=2)
    return figure


def _curve_with_range(
    axes: Axes, updates: np.ndarray, values: np.ndarray, colour, label: str
) -> None:
    """Mean over seeds [U, K] and their range, smoothed alike."""
    known = np.isfinite(values).all(axis=1)
    updates, curve = updates[known], _smooth(values[known].T)
    axes.fill_between(updates, curve.min(axis=0), curve.max(axis=0), color=colour, alpha=0.2, lw=0)
    axes.plot(updates, curve.mean(axis=0), color=colour, label=label, lw=1.6)


SUITE_LINES = (
    ("PE", EXPERT_COLOUR, "o", ("pe_return",)),
    ("clone, sampling", "#6a4c93", "s", ("clones", "behaviour_cloning_sampled")),
    ("clone, greedy", OBSERVER_COLOUR, "D", ("clones", "behaviour_cloning_greedy")),
    ("clone, mean action", "#e2a13c", "v", ("clones", "mean_action")),
    (
        *("one expert: its greedy clone", "#777777", "x"),
        ("single_expert_control", "clones", "behaviour_cloning_greedy"),
    ),
)
"""Label, colour and marker of what a row of ``suite.json`` holds, and where."""


def suite_shares(rows: Sequence[Mapping]) -> Figure:
    """Returns in shares of what the ensemble without an observer gets above a random policy.

    Args:
      rows: of ``suite.json``.
    """
    figure, axes = plt.subplots(figsize=(7.6, 1.6 + 0.5 * len(rows)), layout="constrained")
    handles: dict[str, Any] = {}
    for line, row in enumerate(rows):
        base = row["random_return"]
        scale = row["beta0_return"]["mean"] - base
        for offset, (label, colour, marker, path) in enumerate(SUITE_LINES):
            summary: Any = row
            for name in path:
                summary = summary.get(name) if summary is not None else None
            if summary is None or scale <= 0:
                continue
            y = line + 0.13 * (offset - 2)
            ends = [summary[end] for end in ("low", "high") if summary[end] is not None]
            axes.plot([(end - base) / scale for end in ends], [y] * len(ends), color=colour, lw=1.2)
            mean = (summary["mean"] - base) / scale
            (drawn,) = axes.plot([mean], [y], marker=marker, color=colour, ms=5.5, ls="")
            handles[label] = drawn
    for share, style in ((0.0, ":"), (0.5, "--"), (1.0, ":")):
        axes.axvline(share, color="black", lw=0.8, ls=style, zorder=0)
    axes.set_yticks(range(len(rows)), [row["env"] for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("share of the return without an observer (1), from a random policy's (0)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    figure.legend(
        *(handles.values(), handles.keys()), loc="outside lower center", ncols=3, fontsize=8
    )
    return figure


def observer_bars(content: Mapping) -> Figure:
    """Clone return of every observer, a panel for each defence, with intervals.

    Args:
      content: of ``audit.json``.
    """
    names = [defence["name"] for defence in content["defences"]]
    kinds = list(dict.fromkeys((row["observer"], row["deployment"]) for row in content["rows"]))
    num_columns = min(4, len(names))
    num_lines = -(-len(names) // num_columns)
    figure, grid = plt.subplots(
        num_lines,
        num_columns,
        figsize=(2.6 * num_columns + 1.8, num_lines * (0.19 * len(kinds) + 1.0) + 0.5),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes in grid.flat[len(names) :]:
        axes.set_axis_off()
    for axes, defence in zip(grid.flat, content["defences"], strict=False):
        rows = {
            (row["observer"], row["deployment"]): row["clone_return"]
            for row in content["rows"]
            if row["defence"] == defence["name"]
        }
        for line, kind in enumerate(kinds):
            if kind not in rows:
                continue
            summary = rows[kind]
            low, mean = content["random_return"], summary["mean"]
            axes.barh(line, mean - low, left=low, height=0.72, color=DEPLOYMENT_COLOURS[kind[1]])
            if summary["low"] is not None:
                axes.plot([summary["low"], summary["high"]], [line, line], color="black", lw=1.2)
        axes.axvline(
            defence["pe_return"]["mean"], color="black", ls="--", lw=1.0, label="the ensemble (PE)"
        )
        axes.set_title(defence["label"], fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", alpha=0.25)
        axes.set_axisbelow(True)
    labels = [f"{observer}, {deployed}" for observer, deployed in kinds]
    for line in grid:
        line[0].set_yticks(range(len(kinds)), labels, fontsize=7.5)
    grid[0, 0].set_ylim(len(kinds) - 0.4, -0.6)
    figure.supxlabel("return of the clone, drawn from what a random policy gets", fontsize=10)
    deployed = {kind[1]: DEPLOYMENT_COLOURS[kind[1]] for kind in kinds}
    handles = [Patch(color=colour, label=name) for name, colour in deployed.items()]
    handles += grid[0, 0].get_legend_handles_labels()[0]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize=9)
    return figure


def limited_curves(content: Mapping) -> Figure:
    """Clone return of a network over demonstrations and over width, sampled and greedy.

    Args:
      content: of ``audit.json``.
    """
    labels = {"num_steps": "demonstration steps", "width": "hidden units"}
    figure, grid = plt.subplots(
        2, 2, figsize=(8.6, 6.2), sharey=True, sharex="col", layout="constrained"
    )
    for line, deployment in zip(grid, ("sampled", "greedy"), strict=True):
        for axes, axis in zip(line, labels, strict=True):
            for number, defence in enumerate(content["defences"]):
                points = sorted(
                    (curve["value"], curve["clone_return"])
                    for curve in content["curves"]
                    if (curve["defence"], curve["axis"], curve["deployment"])
                    == (defence["name"], axis, deployment)
                )
                values, summaries = [x for x, _ in points], [y for _, y in points]
                if points:
                    _band(axes, values, summaries, defence["label"], number)
            axes.set_xscale("log", base=2 if axis == "width" else 10)
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        line[0].set_ylabel(f"return of the {deployment} clone")
    for axes, label in zip(grid[1], labels.values(), strict=True):
        axes.set_xlabel(label)
    grid[0, 0].set_title("over demonstrations, widest network", fontsize=10)
    grid[0, 1].set_title("over width, all demonstrations", fontsize=10)
    handles = grid[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4, fontsize=8.5)
    return figure


def posterior_entropy(content: Mapping) -> Figure:
    """How fast an episode gives away which expert acts.

    Args:
      content: of ``audit.json``.
    """
    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for number, defence in enumerate(content["defences"]):
        if defence["posterior_entropy"] and defence["num_experts"] > 1:
            steps = range(len(defence["posterior_entropy"]))
            _band(axes, steps, defence["posterior_entropy"], defence["label"], number)
    axes.set_xlabel("step of the episode")
    axes.set_ylabel("entropy of the expert, nats")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False, fontsize=9)
    return figure


def frontier(content: Mapping) -> Figure:
    """PE return against clone return over β, from samples and exactly.

    Args:
      content: of ``sweep.json``.
    """
    observers = list(dict.fromkeys(point["observer"] for point in content["points"]))
    figure, grid = plt.subplots(
        1,
        len(observers),
        figsize=(4.6 * len(observers), 4.3),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    styles = {"exact": (EXPERT_COLOUR, "s", "--"), "sampled": (OBSERVER_COLOUR, "o", "-")}
    for axes, observer in zip(grid[0], observers, strict=True):
        # The means set the limits, so that a seed far away does not squeeze the rest.
        pe_returns = [
            p["pe_return"]["mean"] for p in content["points"] if p["observer"] == observer
        ]
        room = max(0.06 * (max(pe_returns) - min(pe_returns)), 0.1)
        ends = (min(pe_returns) - room, max(pe_returns) + room)
        for training, (colour, marker, line) in styles.items():
            points = [
                point
                for point in content["points"]
                if (point["observer"], point["training"]) == (observer, training)
            ]
            points.sort(key=lambda point: point["beta"])
            means = [[point[key]["mean"] for point in points] for key in _FRONTIER_AXES]
            axes.plot(*means, color=colour, ls=line, marker=marker, ms=5, label=training, zorder=3)
            for point in points:
                seeds = [point[key]["values"] for key in _FRONTIER_AXES]
                axes.scatter(*seeds, s=9, color=colour, alpha=0.35, lw=0, marker=marker)
                if training == "sampled":
                    axes.annotate(
                        f"{point['beta']:g}",
                        [point[key]["mean"] for key in _FRONTIER_AXES],
                        textcoords="offset points",
                        xytext=(5, 4),
                        fontsize=7.5,
                        color=colour,
                    )
        axes.plot(ends, ends, color="grey", lw=0.9, ls=":", label="clone as good as PE", zorder=1)
        axes.set_xlim(ends)
        axes.set_title(f"against the {observer} observer", fontsize=10)
        axes.set_xlabel("return of the ensemble (PE)")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0, 0].set_ylabel("return of its clone")
    grid[0, 0].legend(frameon=False, fontsize=9)
    return figure


_FRONTIER_AXES = ("pe_return", "clone_return")


def _band(axes: Axes, x, summaries, label: str, number: int) -> None:
    """A line of means with its interval as a band."""
    colour, line = f"C{number}", LINES[number % len(LINES)]
    means = [summary["mean"] for summary in summaries]
    axes.plot(x, means, label=label, lw=1.6, color=colour, ls=line)
    if summaries[0]["low"] is not None:
        low, high = ([summary[end] for summary in summaries] for end in ("low", "high"))
        axes.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure, crisp where it is a bitmap, and close it."""
    figure.savefig(path, dpi=160)
    plt.close(figure)


def _smooth(values: np.ndarray, width: int = 10) -> np.ndarray:
    """Means of up to ``width`` updates, ending at each."""
    sums = np.cumsum(np.pad(values, ((0, 0), (1, 0))), axis=1)
    ends = np.arange(1, values.shape[1] + 1)
    begins = np.maximum(ends - width, 0)
    return (sums[:, ends] - sums[:, begins]) / (ends - begins)
