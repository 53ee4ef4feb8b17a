"""A run as one page of HTML that needs no other file."""

import base64
import dataclasses
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from ape_jax.algorithms.task import Task
from ape_jax.config import RunConfig
from ape_jax.envs.gridworld import GridWorld
from ape_jax.evaluation.audit_records import Audit
from ape_jax.evaluation.intervals import Interval
from ape_jax.evaluation.reproduce import Panels
from ape_jax.evaluation.subjects import RUN
from ape_jax.evaluation.summary import Summary
from ape_jax.evaluation.sweep import Sweep
from ape_jax.evaluation.verdicts import MEANING
from ape_jax.reporting import audit_figures, audit_table, figures, findings, grid_figures
from ape_jax.reporting.findings import percent, text_of

PAGE_WIDTH = 7.8
"""Least width of a figure, in inches; the page scales figures."""

STYLE: dict[str, Any] = {
    "image.interpolation": "none",  # Cells stay sharp at any size.
    "svg.hashsalt": "ape_jax",  # The same figure has the same ids each time.
}
"""Settings of matplotlib for figures of a page."""


class Sources(NamedTuple):
    """Everything that a report is made of."""

    name: str
    task: Task
    config: RunConfig
    summary: Summary
    updates: list[dict]
    """Lines of ``metrics.jsonl``."""
    audit: Audit | None
    """None where actions are continuous."""
    sweep: Sweep | None
    panels: Panels | None
    """Policies of the first seed; None where the environment is no gridworld."""
    facts: dict[str, str]
    commands: dict[str, str]
    """Commands, by what they make."""


class Cell(NamedTuple):
    """A cell of the audit's table."""

    text: str
    value: float | str | None
    """Value by which the table is sorted; None comes last."""


def render(sources: Sources) -> str:
    """The page."""
    audit = sources.audit
    if audit is not None and not findings.learned(sources.summary):
        # A share of what nobody learned is a share of noise.
        audit = dataclasses.replace(
            audit,
            rows=tuple(dataclasses.replace(row, fraction=None) for row in audit.rows),
            threats=tuple(dataclasses.replace(row, fraction=None) for row in audit.threats),
        )
        sources = sources._replace(audit=audit)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    verdicts = {} if audit is None else findings.verdicts(audit)
    return environment.get_template("report.html.jinja").render(
        sources._asdict(),
        statement=findings.statement(sources.config),
        numbers=key_numbers(sources.summary, audit),
        findings=findings.find(sources.config, sources.summary, audit),
        verdicts={
            kind: ", ".join(map(findings.name_of, rows)) or "none"
            for kind, rows in verdicts.items()
        },
        figures={drawing["name"]: drawing for drawing in draw(sources)},
        table=[] if audit is None else table(audit),
        header=["ensemble", *audit_table.HEADER],
        explanation=audit_table.EXPLANATION,
        threats=[] if audit is None else threats(audit),
        threat_header=["ensemble", *audit_table.THREAT_HEADER],
        threat_explanation=f"{audit_table.THREAT_EXPLANATION} {MEANING}",
        dots=audit_figures.THREAT_COLOURS,
        settings=sources.config.to_flat(),
    )


def key_numbers(summary: Summary, audit: Audit | None) -> list[tuple[str, str]]:
    """Names of those who act, and their returns with intervals."""
    found = {
        "ensemble (PE)": Interval.over_seeds(summary.pe_return.array),
        "experts, greedy": Interval.over_seeds(summary.greedy_experts.array.mean(axis=1)),
        "mixture π_o": Interval.over_seeds(summary.mixture.array),
    }
    for row in [] if audit is None else audit.rows_of(RUN):
        if row.observer == "behaviour_cloning" and row.deployment != "tempered":
            found[f"clone, {row.deployment}"] = row.clone_return
    return [(who, text_of(interval)) for who, interval in found.items()]


def table(audit: Audit) -> list[list[Cell]]:
    """Rows of every ensemble in the audit, the strongest attacker first."""
    labels = {defence.name: defence.label for defence in audit.defences}
    lines = []
    for row in sorted(audit.rows, key=lambda row: -row.clone_return.mean):
        share = row.fraction
        lines.append(
            [
                Cell(labels[row.defence], labels[row.defence]),
                Cell(audit_table.name_of(row), row.observer),
                Cell(row.deployment, row.deployment),
                Cell(row.sees, row.sees),
                Cell(text_of(row.clone_return), row.clone_return.mean),
                Cell("–", None) if share is None else Cell(percent(share), share.mean),
                Cell(percent(row.agreement), row.agreement.mean),
            ]
        )
    return lines


def threats(audit: Audit) -> list[list[str]]:
    """Lines of the table of threat models."""
    return [
        [defence.label, *audit_table.threat_cells(audit, defence, row, "z,.2f")]
        for defence in audit.defences
        for row in audit.threats_of(defence.name)
    ]


def draw(sources: Sources) -> list[dict[str, str]]:
    """The figures of what there is."""
    drawings = [
        _drawing(
            "curves",
            lambda: figures.run_curves({sources.name: sources.updates}),
            "Returns over updates: above, experts and observer; below, every expert",
            "Return of an episode over updates, means of the last ten: above, the experts together "
            "and the observer that they are trained against; below, every expert. Lines are means "
            "over seeds, bands reach from the lowest seed to the highest.",
        )
    ]
    world, panels, audit, sweep = sources.task.world, sources.panels, sources.audit, sources.sweep
    if panels is not None and isinstance(world.env, GridWorld) and world.mdp is not None:
        env, mdp = world.env, world.mdp
        note = (
            f"Seed {sources.config.first_seed}. Colour: expected return from the cell; arrows: "
            "probabilities of the actions, a dot for staying; G: the goal."
        )
        for name, policies, label, caption in (
            ("experts", panels.experts, "The experts on the grid", "The experts."),
            (
                "observers",
                panels.observers,
                "Observers and clones on the grid",
                "The uniform mixture, and clones by behaviour cloning (BC).",
            ),
        ):
            rows = grid_figures.in_rows(policies)
            figure = partial(grid_figures.policy_figure, env, mdp, rows)
            drawings.append(_drawing(name, figure, label, f"{caption} {note}"))
    if audit is not None and any(row.fraction for row in audit.threats):
        drawings.append(
            _drawing(
                "threats",
                lambda: audit_figures.threat_shares(audit),
                "Share of the ensemble's return that the strongest attackers get",
                "Share of the ensemble's return that the strongest attacker of each threat model "
                "gets, and for comparison a plain clone that acts greedily.",
            )
        )
    if audit is not None and audit.rows:
        drawings.append(
            _drawing(
                "bars",
                lambda: audit_figures.observer_bars(audit),
                "Return of every observer's clone, as bars",
                "Return of every observer's clone in its best way of acting, drawn from what a "
                "random policy returns; a mark is the same clone acting greedily. The dashed line "
                "is the ensemble, thin lines are 95 % intervals.",
            )
        )
    if sweep is not None:
        drawings.append(
            _drawing(
                "frontier",
                lambda: figures.frontier(sweep),
                "Return of the ensemble against the return of its clone, over beta",
                f"Return of the ensemble against return of the clone, over β; {sweep.seeds} "
                f"seed(s) for each β, {sweep.num_updates:,} updates. Dots are seeds, lines join "
                "the means.",
            )
        )
    return drawings


def _drawing(name: str, make: Callable[[], Figure], label: str, caption: str) -> dict[str, str]:
    """A figure as a ``data:`` address, with a description for those who do not see it."""
    file = io.BytesIO()
    with plt.rc_context(STYLE):
        figure = make()
        figure.set_figwidth(max(PAGE_WIDTH, figure.get_figwidth()))
        figure.savefig(file, format="svg", metadata={"Date": None}, bbox_inches="tight")
        plt.close(figure)
    content = base64.b64encode(file.getvalue()).decode()
    source = f"data:image/svg+xml;base64,{content}"
    return {"name": name, "source": source, "label": label, "caption": caption}
