"""Figures of an audit: threat models, observers, demonstrations."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ape_jax.evaluation.audit_records import Audit
from ape_jax.evaluation.intervals import Interval
from ape_jax.evaluation.suite import GREEDY_CLONE
from ape_jax.evaluation.suite_records import Suite
from ape_jax.evaluation.verdicts import PROTECTED_SHARE
from ape_jax.observers.threats import THREATS
from ape_jax.reporting.figures import panels

LINES = ("-", "--", "-.", ":")


SHARE_COLOURS = LinearSegmentedColormap.from_list("shares", ("#1f5fa8", "#f2efe6", "#c8442d"))
"""From what a random policy gets, over half of the ensemble's return, to all of it."""

GREEDY = "plain cloning,\ngreedy"
"""Name of the column that shows a weak attacker for comparison."""

Line = dict[str, tuple[str, Interval | None]]
"""Columns of one line: who attacks, and what share it gets."""

GREEDY_MARK: dict[str, Any] = {"marker": "D", "color": "#c8442d", "ms": 3.5, "ls": ""}

THREAT_COLOURS = dict(
    zip(THREATS, ("#1f5fa8", "#3b9aa0", "#c8442d", "#8a8a8a", "#6a4c93", "#e2a13c"), strict=True)
)


def threat_shares(audit: Audit) -> Figure:
    """Share of the ensemble's return that the strongest attacker of each threat model gets.

    A line for each defence. For comparison, the first column is plain cloning that acts greedily.
    """
    lines = {}
    for defence in audit.defences:
        line: Line = {}
        for clone in audit.rows_of(defence.name):
            if (clone.observer, clone.deployment) == ("behaviour_cloning", "greedy"):
                line[GREEDY] = ("", clone.fraction)
        for row in audit.threats_of(defence.name):
            line[row.threat] = (row.attacker, row.fraction)
        lines[defence.label] = line
    return _shares(lines)


def suite_threats(suite: Suite) -> Figure:
    """The same for the environments of a suite."""
    lines = {}
    for row in suite.rows:
        scale = np.asarray(row.pe_return.values) - row.random_return
        clone = np.asarray(row.clones[GREEDY_CLONE].values) - row.random_return
        line: Line = {}
        if np.all(scale > 0):
            line[GREEDY] = ("", Interval.over_seeds(clone / scale))
        for threat in row.threats:
            line[threat.threat] = (threat.attacker, threat.fraction)
        lines[row.env] = line
    return _shares(lines)


def _shares(lines: Mapping[str, Line]) -> Figure:
    """A table of shares as colours; the lines map columns to who gets how much."""
    columns = [x for x in (GREEDY, *THREATS) if any(x in line for line in lines.values())]
    size = (1.15 * len(columns) + 2.6, 0.5 * len(lines) + 1.4)
    figure, ((axes,),) = panels(1, 1, *size)
    shares = np.full((len(lines), len(columns)), np.nan)
    for number, line in enumerate(lines.values()):
        for name, (who, fraction) in line.items():
            if fraction is None:
                continue
            column = columns.index(name)
            share = shares[number, column] = fraction.mean
            text = f"{share:.0%}\n{who.replace('_', ' ')}".strip()
            colour = "white" if share > 0.75 or share < 0.2 else "black"
            axes.text(column, number, text, ha="center", va="center", fontsize=6.5, color=colour)
    image = axes.imshow(shares, cmap=SHARE_COLOURS, vmin=0.0, vmax=1.0, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, fontsize=8)
    axes.set_yticks(range(len(lines)), list(lines), fontsize=8)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, ticks=(0, PROTECTED_SHARE, 1))
    bar.ax.set_yticklabels(["random", "half", "PE"], fontsize=8)
    return figure


def observer_bars(audit: Audit) -> Figure:
    """Clone return of every observer in its best way of acting, a panel for each defence.

    Thin lines are intervals. A mark shows what the same clone gets when it acts greedily.
    """
    observers = list(dict.fromkeys(row.observer for row in audit.rows))
    columns = min(4, len(audit.defences))
    lines = -(-len(audit.defences) // columns)
    height = lines * (0.2 * len(observers) + 1.0) + 0.5
    figure, grid = panels(lines, columns, 2.6 * columns + 1.8, height, sharex=True, sharey=True)
    for axes in grid.flat[len(audit.defences) :]:
        axes.set_axis_off()
    low = audit.random_return
    for axes, defence in zip(grid.flat, audit.defences, strict=False):
        drawn: set[str] = set()
        for row in audit.rows_of(defence.name):
            line, mean = observers.index(row.observer), row.clone_return.mean
            if row.observer not in drawn:
                drawn.add(row.observer)
                colour = THREAT_COLOURS.get(row.sees, "#bbbbbb")
                axes.barh(line, mean - low, left=low, height=0.72, color=colour)
                axes.plot(row.clone_return.ends, [line, line], color="black", lw=1.2)
            if row.deployment == "greedy":
                axes.plot([mean], [line], **GREEDY_MARK)
        label = "the ensemble (PE)"
        axes.axvline(defence.pe_return.mean, color="black", ls="--", lw=1.0, label=label)
        axes.set_title(defence.label, fontsize=10)
        axes.grid(visible=False, axis="y")
    for line in grid:
        names = [name.replace("_", " ") for name in observers]
        line[0].set_yticks(range(len(observers)), names, fontsize=7.5)
    grid[0, 0].set_ylim(len(observers) - 0.4, -0.6)
    figure.supxlabel("return of the clone, drawn from what a random policy gets", fontsize=10)
    colours = {"looks inside": "#bbbbbb", **THREAT_COLOURS}
    seen = {row.sees for row in audit.rows}
    handles: list[Any] = [
        Patch(color=colour, label=name)
        for name, colour in colours.items()
        if name in seen or (name == "looks inside" and "experts" in seen)
    ]
    handles += grid[0, 0].get_legend_handles_labels()[0]
    handles.append(Line2D([], [], **GREEDY_MARK, label="acting greedily"))
    figure.legend(handles=handles, loc="outside upper center", ncols=5, fontsize=8)
    return figure


def demonstration_curves(audit: Audit) -> Figure:
    """Share that the strongest attackers get, over demonstrated episodes; a panel a defence."""
    columns = min(4, len(audit.defences))
    lines = -(-len(audit.defences) // columns)
    size = (2.6 * columns + 1.0, 2.2 * lines + 0.9)
    figure, grid = panels(lines, columns, *size, sharex=True, sharey=True)
    for axes in grid.flat[len(audit.defences) :]:
        axes.set_axis_off()
    for axes, defence in zip(grid.flat, audit.defences, strict=False):
        for number, threat in enumerate(THREATS):
            about = (defence.name, threat)
            points = [
                point
                for point in audit.curves
                if (point.defence, point.threat) == about and point.fraction is not None
            ]
            points.sort(key=lambda point: point.num_steps)
            shares = [point.fraction for point in points if point.fraction is not None]
            _band(axes, [point.episodes for point in points], shares, threat, number)
        axes.axhline(1.0, color="black", ls="--", lw=0.8)
        axes.axhline(PROTECTED_SHARE, color="black", ls=":", lw=0.8)
        axes.set_xscale("log")
        axes.set_ylim(-0.15, 1.25)
        axes.set_title(defence.label, fontsize=10)
    figure.supxlabel("demonstrated episodes", fontsize=10)
    figure.supylabel("share of the ensemble's return", fontsize=10)
    handles = grid[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=len(THREATS), fontsize=8.5)
    return figure


def posterior_entropy(audit: Audit) -> Figure:
    """Entropy of the expert along an episode: how fast the actions give away which expert acts."""
    figure, ((axes,),) = panels(1, 1, 6.4, 3.8)
    for number, defence in enumerate(audit.defences):
        entropy = defence.posterior_entropy or ()
        _band(axes, range(len(entropy)), entropy, defence.label, number)
    axes.set_xlabel("step of the episode")
    axes.set_ylabel("entropy of the expert, nats")
    axes.set_ylim(bottom=0)
    if axes.lines:
        axes.legend(frameon=False, fontsize=9)
    return figure


def _band(
    axes: Axes,
    x: Sequence[float] | range,
    intervals: Sequence[Interval],
    label: str,
    number: int,
) -> None:
    """A line of means with its interval as a band, if there is anything."""
    if not intervals:
        return
    colour, line = f"C{number}", LINES[number % len(LINES)]
    axes.plot(x, [one.mean for one in intervals], label=label, lw=1.6, color=colour, ls=line)
    low, high = zip(*(one.ends for one in intervals), strict=True)
    axes.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
