"""A run as one page of HTML: what it holds, from what is on disk, and the page itself."""

import dataclasses
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import matplotlib.figure
import numpy as np
from markupsafe import Markup

from ape_jax import presets
from ape_jax.config import RunConfig, recipe
from ape_jax.core.tabular import FiniteMDP
from ape_jax.envs.gridworld import GridWorld
from ape_jax.reporting import audit_table, findings, inline_svg
from ape_jax.reporting import figures as plotting

PAGE_WIDTH = 7.8
"""Of figures, in inches; the page scales them."""

PANELS_IN_A_ROW = 4
"""Of policies on the grid."""


class Policies(NamedTuple):
    """Of one seed on the grid, to be drawn."""

    env: GridWorld
    """Their world."""
    mdp: FiniteMDP
    """The same as a finite MDP."""
    seed: int
    """Its number."""
    num_steps: int
    """Demonstration steps behind the clones."""
    experts: np.ndarray
    """Probabilities [E, S, A]."""
    observers: dict[str, np.ndarray]
    """A title to probabilities [S, A]."""


class Sources(NamedTuple):
    """What a report is made of."""

    name: str
    """Of the run."""
    config: RunConfig
    """Every setting of the run."""
    summary: dict
    """``summary.json``."""
    updates: list[dict]
    """Lines of ``metrics.jsonl``."""
    audit: dict | None
    """``audit.json``; None where actions are continuous."""
    sweep: dict | None
    """``sweep.json``."""
    policies: Policies | None
    """None where the environment is no gridworld."""
    facts: dict[str, str]
    """What else is known of the run and the report, by its name."""
    commands: dict[str, str]
    """By what they make: the run, this report, the audit where there is one, and the sweep where
    there is none but might be."""


class Drawn(NamedTuple):
    """A figure in the page."""

    name: str
    """Of the figure, in the page's links."""
    svg: Markup
    """The figure itself."""
    label: str
    """For those who do not see it."""
    caption: str
    """The text below it."""


def render(sources: Sources) -> str:
    """The page."""
    if sources.audit is not None and not findings.learned(sources.summary):
        sources = sources._replace(audit=findings.without_shares(sources.audit))
    figures, colours = _figures(sources)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    dots = plotting.DEPLOYMENT_COLOURS
    colours |= set(dots.values())
    base, groups = settings(sources.config)
    page = environment.get_template("report.html.jinja")
    return page.render(
        name=sources.name,
        env=sources.config.train.env,
        statement=findings.statement(sources.config),
        numbers=key_numbers(sources.summary, sources.audit),
        findings=findings.find(sources.config, sources.summary, sources.audit),
        verdicts=_verdict_lines(sources.audit),
        figures=figures,
        audit=sources.audit,
        table=None if sources.audit is None else table(sources.audit),
        explanation=audit_table.EXPLANATION,
        sweep=sources.sweep,
        base=base,
        settings=groups,
        facts=sources.facts,
        commands=sources.commands,
        dots={name: inline_svg.variable(colour) for name, colour in dots.items()},
        light={inline_svg.variable(colour): colour for colour in sorted(colours)},
        dark={inline_svg.variable(c): inline_svg.on_dark(c) for c in sorted(colours)},
        background=inline_svg.DARK,
    )


def key_numbers(summary: Mapping, audit: Mapping | None) -> list[tuple[str, str, str]]:
    """Who acts, mean return, and its interval in words."""
    found = [
        ("ensemble (PE)", summary["pe_return"]["values"]),
        ("experts, greedy", np.mean(summary["greedy_experts"]["values"], axis=1)),
        ("mixture π_o", summary["mixture"]["values"]),
    ]
    if audit is not None:
        found += [
            (f"clone, {row['deployment']}", row["clone_return"]["values"])
            for row in findings.rows_of(audit, findings.RUN)
            if row["observer"] == "behaviour_cloning" and row["deployment"] != "tempered"
        ]
    numbers = []
    for who, values in found:
        text = findings.with_interval(findings.interval(values))
        mean, _, between = text.partition(" ")
        numbers.append((who, mean, between))
    return numbers


def _verdict_lines(audit: Mapping | None) -> list[tuple[str, str, str]]:
    """A class for the page, a heading, and the clones under it."""
    found = None if audit is None else findings.verdicts(audit)
    if found is None:
        return []
    headings = ("protected against", "not protected against", "undecided")
    lines = []
    for kind, heading, rows in zip(found._fields, headings, found, strict=True):
        deployments: dict[str, list[str]] = {}
        for row in rows:
            observer = row["observer"].replace("_", " ")
            deployments.setdefault(observer, []).append(row["deployment"])
        clones = [f"{who} ({', '.join(how)})" for who, how in deployments.items()]
        lines.append((kind, heading, ", ".join(clones) or "none"))
    return lines


class Cell(NamedTuple):
    """Of the audit's table."""

    text: str
    """What it shows."""
    value: float | str | None
    """By which it is sorted; None comes last."""


class Table(NamedTuple):
    """The audit's, in the order in which it is first shown."""

    header: list[tuple[str, bool]]
    """Names, and whether what is below is numbers."""
    rows: list[tuple[str, list[Cell]]]
    """The deployment, and all cells."""


def table(audit: Mapping) -> Table:
    """Of every ensemble in the audit, the strongest attacker first."""
    labels = {defence["name"]: defence["label"] for defence in audit["defences"]}
    several = len(labels) > 1
    header = [(name, index >= audit_table.TEXT_COLUMNS) for index, name in enumerate(_HEADER)]
    rows = []
    for row in audit_table.worst_first(audit["rows"]):
        star = " *" if row["observer"] in audit_table.YARDSTICKS else ""
        share = row["fraction"]
        cells = [
            Cell(row["observer"] + star, row["observer"]),
            Cell(row["deployment"], row["deployment"]),
            Cell(row["sees"], row["sees"]),
            Cell(findings.with_interval(row["clone_return"]), row["clone_return"]["mean"]),
            Cell("–", None) if share is None else Cell(findings.percent(share), share["mean"]),
            Cell(findings.percent(row["agreement"]), row["agreement"]["mean"]),
        ]
        label = labels[row["defence"]]
        rows.append((row["deployment"], [Cell(label, label)] * several + cells))
    return Table([("ensemble", False)] * several + header, rows)


_HEADER = audit_table.HEADER


class Setting(NamedTuple):
    """One line of the configuration."""

    name: str
    """As in ``config.yaml``."""
    value: str
    """As the page shows it."""
    usual: str | None
    """What the recipe or preset has, where that is something else."""


def settings(config: RunConfig) -> tuple[str, dict[str, list[Setting]]]:
    """What the settings are compared with, and all of them in their groups."""
    base, usual, _ = _nearest(config)
    own, usual_flat = config.to_flat(), usual.to_flat()
    groups: dict[str, list[Setting]] = {}
    for group, owner in (("train", config.train), ("hypers", config.hypers), ("run", config)):
        groups[group] = [
            Setting(
                field.name,
                _value(own[field.name]),
                None
                if own[field.name] == usual_flat[field.name]
                else _value(usual_flat[field.name]),
            )
            for field in dataclasses.fields(owner)
            if field.name in own
        ]
    return base, groups


def train_command(config: RunConfig, out: str) -> str:
    """The command that trains a run again: the nearest recipe or preset, and what differs."""
    return shlex.join(["ape-jax", "train", *_nearest(config)[2], "--out", out])


def _nearest(config: RunConfig) -> tuple[str, RunConfig, list[str]]:
    """The recipe or preset that takes the fewest flags: its name, its settings, and the flags."""
    train, hypers = config.train, config.hypers
    usual = RunConfig(*recipe(train.head, hypers.min_return, train.algorithm))
    plain, own = RunConfig().to_flat(), config.to_flat()
    # These choose the recipe, and so have to be said though they are as in it.
    choice = [n for n in ("algorithm", "head", "min_return") if own[n] != plain[n]]
    title = f"the recipe for {train.algorithm} with {train.head} heads"
    found = [(title, usual, _flags(choice, usual, config))]
    for name in presets.names():
        preset = presets.config(name)
        if preset.train.algorithm != train.algorithm:
            continue
        first = preset.train.env_param
        if first == train.env_param[: len(first)]:  # Of env_param, flags can only add.
            flags = ["--preset", name, *_flags([], preset, config)]
            found.append((f"the preset {name}", preset, flags))
    return min(found, key=lambda one: len(one[2]))


def _flags(always: Sequence[str], base: RunConfig, config: RunConfig) -> list[str]:
    own, usual = config.to_flat(), base.to_flat()
    flags: list[str] = []
    for name, value in own.items():
        if name not in always and value == usual[name]:
            continue
        flag = name.replace("_", "-")
        if name == "env_param":
            flags += [part for item in value[len(usual[name]) :] for part in (f"--{flag}", item)]
        elif isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            values = value if isinstance(value, list) else [value]
            flags += [f"--{flag}", *map(str, values)]
    return flags


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _figures(sources: Sources) -> tuple[dict[str, Drawn], set[str]]:
    """Figures by name, and the colours that the page has to define."""
    drawn: dict[str, Drawn] = {}
    colours: set[str] = set()

    def add(
        name: str,
        make: Callable[[], matplotlib.figure.Figure],
        label: str,
        caption: str,
        recolour: bool = True,
    ) -> None:
        figure = inline_svg.draw(make, name, recolour)
        colours.update(figure.colours)
        drawn[name] = Drawn(name, Markup(figure.markup), label, caption)

    seeds, spread = sources.config.seeds, ""
    if seeds > 1:
        spread = f" Lines are means over {seeds} seeds, bands reach from the lowest to the highest."
    add(
        "curves",
        lambda: _wide(plotting.run_curves({"": sources.updates}), 5.4, titled=False),
        "Returns over updates: above, experts and observer; below, every expert",
        "Return of an episode over updates, means of the last ten: above, the experts together and "
        f"the observer that they are trained against; below, every expert.{spread}",
    )
    if sources.policies is not None:
        _add_policies(add, sources.policies)
    if sources.audit is not None and sources.audit["rows"]:
        audit = sources.audit
        add(
            "bars",
            lambda: _wide(plotting.observer_bars(audit), titled=len(audit["defences"]) > 1),
            "Return of every observer's clone, as bars",
            "Return of every clone, drawn from what a random policy returns; the dashed line is "
            "the ensemble" + (", thin ones are 95 % intervals." if audit["seeds"] > 1 else "."),
        )
    if sources.sweep is not None:
        sweep = sources.sweep
        add(
            "frontier",
            lambda: _wide(plotting.frontier(sweep)),
            "Return of the ensemble against the return of its clone, over beta",
            f"What the ensemble returns against what is left to the clone, over β; "
            f"{sweep['seeds']} seed(s) for each β, {sweep['num_updates']:,} updates. Dots are "
            "seeds, lines join the means.",
        )
    return drawn, colours


def _add_policies(add: Callable[..., None], policies: Policies) -> None:
    num_experts = len(policies.experts)
    experts: dict[str, np.ndarray] = {
        f"expert {index + 1}": expert for index, expert in enumerate(policies.experts)
    }
    if num_experts > 1:
        experts["average of the experts"] = policies.experts
    shown = (
        f"Seed {policies.seed}. Colour: expected return from the cell; arrows: probabilities of "
        "the actions, a dot for staying; G: the goal."
    )
    for name, panels, label, caption in (
        ("experts", experts, "The experts on the grid", f"The experts. {shown}"),
        (
            *("observers", policies.observers, "Observers and clones on the grid"),
            f"What observers make of them: the uniform mixture, and clones that counted "
            f"{policies.num_steps:,} demonstration steps. Seed {policies.seed}, as above.",
        ),
    ):
        add(
            name,
            lambda panels=panels: plotting.policy_figure(
                policies.env, policies.mdp, _rows(panels), None
            ),
            label,
            caption,
            recolour=False,
        )


def _rows(panels: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Panels in lines, told apart by blanks where a label would stand."""
    items = list(panels.items())
    starts = range(0, len(items), PANELS_IN_A_ROW)
    return {" " * start: dict(items[start : start + PANELS_IN_A_ROW]) for start in starts}


def _wide(
    figure: matplotlib.figure.Figure, height: float | None = None, titled: bool = True
) -> matplotlib.figure.Figure:
    """At least as wide as the page, as high as it was or as said; with its first title or not."""
    figure.set_figwidth(max(PAGE_WIDTH, figure.get_figwidth()))
    if height is not None:
        figure.set_figheight(height)
    if not titled:
        figure.axes[0].set_title("")
    return figure
