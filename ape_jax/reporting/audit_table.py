"""The audit as JSON, and as tables for people."""

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from ape_jax.evaluation.audit import Measures, Outcome
from ape_jax.evaluation.defences import Ensemble
from ape_jax.evaluation.intervals import interval, percentiles
from ape_jax.reporting import tables

YARDSTICKS = ("mixture", "posterior")
"""Observers that look inside the ensemble: they attack nobody, but bound those who do."""

EXPLANATION = (
    "Clone return: of an episode in which the clone acts. Share: how much of the ensemble's "
    "return (PE) the clone gets, on a scale where a uniformly random policy is 0. Agreement: "
    "probability that the clone acts as a demonstrator did on held-out steps. In brackets: 95 % "
    "bootstrap interval over seeds. Sampled clones draw their actions, greedy ones take the "
    "most probable, tempered ones are in between (temperature 0.5); best is what an attacker "
    "finds who may try all its clones, sampled and greedy, in the environment. Rows marked * "
    "look inside the ensemble. The floor bounds every sampled clone that is a function of the "
    "state and was fitted to enough demonstrations; dagger, which asks for actions, is none."
)
"""What the terminal says below the tables of an audit."""


def row_json(
    defence: str,
    observer: str,
    sees: str,
    deployment: str,
    outcome: Outcome,
    pe_return: np.ndarray,
    random_return: float,
    summarise: Callable = interval,
) -> dict:
    """One row of ``audit.json``; arrays [K]. No fraction where PE is no better than random."""
    clone = np.asarray(outcome.clone_return, np.float64)
    scale = pe_return - random_return
    log_likelihood = outcome.log_likelihood
    return {
        "defence": defence,
        "observer": observer,
        "deployment": deployment,
        "sees": sees,
        "clone_return": summarise(clone),
        "gap": summarise(pe_return - clone),
        "fraction": (summarise((clone - random_return) / scale) if np.all(scale > 1e-6) else None),
        "agreement": summarise(outcome.agreement),
        "log_likelihood": None if log_likelihood is None else summarise(log_likelihood),
    }


def defence_json(
    ensemble: Ensemble, label: str, measures: Measures, optimal_return: float | None
) -> dict:
    """One entry of ``defences``; arrays [K, …]."""
    experts = np.asarray(measures.experts, np.float64)
    pe_return = experts.mean(axis=1)
    entropy = np.asarray(measures.posterior_entropy, np.float64)
    several = ensemble.num_experts > 1
    return {
        "name": ensemble.name,
        "label": label,
        "num_experts": ensemble.num_experts,
        **ensemble.facts,
        "pe_return": interval(pe_return),
        "worst_expert": interval(experts.min(axis=1)),
        "greedy_experts": interval(np.mean(measures.greedy_experts, axis=1)),
        "worst_greedy_expert": interval(np.min(measures.greedy_experts, axis=1)),
        "price": None if optimal_return is None else interval(optimal_return - pe_return),
        "floor": None if measures.floor is None else interval(measures.floor),
        "mixture_entropy": (
            None if measures.mixture_entropy is None else interval(measures.mixture_entropy)
        ),
        "posterior_entropy": [interval(step) for step in entropy.T] if several else None,
    }


def file_defence_json(name: str, label: str, pe_return: np.ndarray) -> dict:
    """The same of demonstrations whose experts are not at hand: what they returned."""
    unknown = dict.fromkeys(
        (
            "num_experts",
            "worst_expert",
            "greedy_experts",
            "worst_greedy_expert",
            "price",
            "floor",
            "mixture_entropy",
            "posterior_entropy",
        )
    )
    return {"name": name, "label": label, "pe_return": percentiles(pe_return), **unknown}


def worst_first(rows: Iterable[dict]) -> list[dict]:
    """Rows by clone return, the strongest attacker on top."""
    return sorted(rows, key=lambda row: -row["clone_return"]["mean"])


HEADER = ["observer", "deployed", "sees", "clone return", "share", "agreement"]
"""Columns of ``audit.md``."""
NARROW_HEADER = HEADER[:-1]
"""For eighty characters."""
TEXT_COLUMNS = 3
"""How many columns, from the left, hold words."""


def defence_lines(content: Mapping, name: str, wide: bool) -> list[list[str]]:
    """Lines of the table of one defence.

    Args:
      content: of ``audit.json``.
      name: of the defence.
      wide: every column and interval; else the columns of the narrow header, and the interval of
        the return alone.
    """
    rows = worst_first(row for row in content["rows"] if row["defence"] == name)
    return [
        [
            row["observer"] + (" *" if row["observer"] in YARDSTICKS else ""),
            row["deployment"],
            row["sees"],
            with_interval(row["clone_return"], digits=2 if wide else 1),
            "" if row["fraction"] is None else _share(row["fraction"], wide),
            *([with_interval(row["agreement"])] if wide else []),
        ]
        for row in rows
    ]


def defence_title(defence: Mapping) -> str:
    """What is known of the ensemble itself, in a line."""
    parts = [f"{defence['label']}: PE {with_interval(defence['pe_return'])}"]
    for key, name in (
        ("worst_expert", "worst expert"),
        ("greedy_experts", "experts when greedy"),
        ("price", "price"),
        ("floor", "floor"),
    ):
        if defence[key] is not None:
            parts.append(f"{name} {with_interval(defence[key])}")
    if "trapped" in defence:
        traps, everywhere = defence["trapped"], defence["from_every_start"]
        parts.append(
            f"a trap in {sum(traps)} of {len(traps)} seed(s), with greedy experts that arrive from "
            f"every start in {sum(everywhere)}"
        )
    return ", ".join(parts)


def with_interval(summary: Mapping, digits: int = 2) -> str:
    """As in ``-12.85 [-13.20, -12.51]``; the mean alone where there is one seed."""
    mean = f"{summary['mean']:.{digits}f}"
    if summary["low"] is None:
        return mean
    return f"{mean} [{summary['low']:.{digits}f}, {summary['high']:.{digits}f}]"


def _share(summary: Mapping, wide: bool) -> str:
    return with_interval(summary) if wide else f"{summary['mean']:.0%}"


def markdown(content: Mapping) -> str:
    """The content of ``audit.md``."""
    paragraphs = [
        f"# Audit of {content['env']}",
        f"{content['seeds']} seed(s), {content['num_steps']:,} demonstration steps, time limit "
        f"{content['horizon']}. Random policy {content['random_return']:.2f}"
        + (
            "."
            if content["optimal_return"] is None
            else f", optimal {content['optimal_return']:.2f}."
        ),
        EXPLANATION,
    ]
    for defence in content["defences"]:
        paragraphs.append(f"## {defence['label']}")
        paragraphs.append(defence_title(defence).split(": ", 1)[1] + ".")
        lines = defence_lines(content, defence["name"], wide=True)
        paragraphs.append(tables.markdown_table(HEADER, lines, TEXT_COLUMNS))
    if content["skipped"]:
        skipped = [f"- {name} {reason}" for name, reason in content["skipped"].items()]
        paragraphs.append("## Observers that did not run\n\n" + "\n".join(skipped))
    return "\n\n".join(paragraphs) + "\n"
