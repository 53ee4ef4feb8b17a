"""What the numbers of a run and of its audit say, in plain sentences that name the observer."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ape_jax.config import RunConfig
from ape_jax.evaluation.attackers import ATTACKERS
from ape_jax.evaluation.intervals import interval
from ape_jax.evaluation.returns import COLLAPSE_SHARE
from ape_jax.reporting.audit_table import YARDSTICKS, worst_first

RUN = "run"
"""Name of a run's own ensemble among the defences of an audit."""

FEW_SEEDS = 5
"""Bootstrap intervals of fewer are too narrow to be left without a word."""


class Finding(NamedTuple):
    """One thing that the numbers say."""

    claim: str
    """What they say, in a sentence."""
    detail: str
    """What it rests on."""


class Verdicts(NamedTuple):
    """Clones that observers made of a run, by what they get of the ensemble's return.

    The border is half of it, counted from a random policy; the whole interval lies on one side.
    """

    kept_out: list[dict]
    """Below the border."""
    not_kept_out: list[dict]
    """At the border or above."""
    undecided: list[dict]
    """With the border in their interval."""


def statement(config: RunConfig) -> str:
    """What was trained, in a sentence."""
    train = config.train
    world = ", ".join([train.env, *train.env_param])
    return (
        f"{_count(train.num_experts, 'expert').capitalize()}, trained with "
        f"{train.algorithm.upper()}-APE on {world} for {_count(train.num_updates, 'update')} "
        f"{_trained_against(config)}; {_count(config.seeds, 'seed')}."
    )


def _trained_against(config: RunConfig) -> str:
    train, hypers = config.train, config.hypers
    constrained = train.constraint == "multipliers" and hypers.min_return is not None
    if train.observer == "none":
        return "without an observer"
    if hypers.beta == 0 and not constrained:
        return "without regard to an observer (β = 0)"
    observers = {
        "uniform": "the uniform mixture π_o",
        "posterior": "the posterior mixture (exact weights)",
        "learned": "the posterior mixture (weights learned along)",
    }
    text = f"against {observers[train.observer]}"
    if hypers.temperature != 1:
        text += f" at temperature {hypers.temperature:g}"
    if not constrained:
        text += f", β = {hypers.beta:g}"
    if hypers.min_return is not None:
        text += f", each to keep a return of at least {_plain(hypers.min_return)}"
    return text


def find(config: RunConfig, summary: Mapping, audit: Mapping | None) -> list[Finding]:
    """Everything worth a sentence, the answer to the main question first.

    Args:
      config: of the run.
      summary: of its ``summary.json``.
      audit: of the ``audit.json`` of this run; None where it cannot be audited.
    """
    if audit is not None:  # Exact on a finite MDP, and what the audit's own shares count from.
        summary = {**summary, "random_return": audit["random_return"]}
    found = [_no_audit() if audit is None else _protection(audit), _ensemble(summary, audit)]
    if audit is not None:
        found += _clones(audit)
    found.append(_mixture(summary))
    found.append(_floor(audit))
    found.append(_greedy_experts(config, summary, audit))
    found.append(_collapsed_experts(config, summary))
    if config.hypers.min_return is not None:
        found.append(_constraint(summary, config.hypers.min_return))
    found += _spread(config.seeds, audit)
    return found


def learned(summary: Mapping) -> bool:
    """Whether in every seed an expert is better than a random policy by more than its spread.

    Where none is, nobody is dead either (``returns.collapsed_experts``), and a share of the
    ensemble's return would be a share of noise.
    """
    best = np.max(summary["expert_returns"]["values"], axis=1)
    return bool(np.all(best > summary["random_return"] + summary["random_std"]))


def without_shares(audit: Mapping) -> dict:
    """The audit, where nobody learned anything."""
    return {**audit, "rows": [{**row, "fraction": None} for row in audit["rows"]]}


def verdicts(audit: Mapping) -> Verdicts | None:
    """Who is kept out, among observers who do not look inside; None where there are no shares."""
    rows = [row for row in rows_of(audit, RUN) if row["observer"] not in YARDSTICKS]
    if not rows or any(row["fraction"] is None for row in rows):
        return None
    found = Verdicts([], [], [])
    for row in worst_first(rows):
        low, high = ends(row["fraction"])
        if high < COLLAPSE_SHARE:
            found.kept_out.append(row)
        elif low >= COLLAPSE_SHARE:
            found.not_kept_out.append(row)
        else:
            found.undecided.append(row)
    return found


def rows_of(audit: Mapping, defence: str) -> list[dict]:
    """Rows of one ensemble."""
    return [row for row in audit["rows"] if row["defence"] == defence]


def ends(summary: Mapping) -> tuple[float, float]:
    """Of the interval; twice the mean where there is one seed."""
    if summary["low"] is None:
        return summary["mean"], summary["mean"]
    return summary["low"], summary["high"]


def number(value: float) -> str:
    """As in ``−12.85`` or ``1,024.0``: two decimals, one from a thousand on."""
    return _signed(value, 2 if abs(value) < 999.995 else 1)


def with_interval(summary: Mapping) -> str:
    """As in ``−12.85 [−13.20, −12.51]``; the mean alone where there is one seed."""
    if summary["low"] is None:
        return number(summary["mean"])
    return f"{number(summary['mean'])} [{number(summary['low'])}, {number(summary['high'])}]"


def percent(summary: Mapping) -> str:
    """As in ``98 % [97, 101]``, of a share; without the interval where there is one seed."""
    mean, *both = (_signed(100 * value, 0) for value in (summary["mean"], *ends(summary)))
    return f"{mean} %" if summary["low"] is None else f"{mean} % [{both[0]}, {both[1]}]"


def _protection(audit: Mapping) -> Finding:
    if all(row["observer"] in YARDSTICKS for row in rows_of(audit, RUN)):
        return Finding("Nothing can be said about protection.", "The audit holds no real cloner.")
    found = verdicts(audit)
    if found is None:
        return Finding(
            "Nothing can be said about protection.",
            "In at least one seed no expert is clearly better than a random policy: there is "
            "nothing to protect, and no scale for shares.",
        )
    rows = [row for row in rows_of(audit, RUN) if row["observer"] not in YARDSTICKS]
    best, observers = worst_first(rows)[0], {row["observer"] for row in rows}
    who = f"The strongest of {_count(len(observers), 'observer')}"
    if len(observers) == 1:
        who = "The only observer that was tried"
    whole = "" if audit["seeds"] == 1 else ", over the whole interval"
    detail = (
        f"It may see: {best['sees']}. Protected below: the clone gets less than half of the "
        f"ensemble's return{whole}. Shares count from what a random policy returns (0 %) to what "
        "the ensemble returns (100 %)."
    )
    known = {*observers, *YARDSTICKS, *audit["skipped"]}
    absent = [name.replace("_", " ") for name in ATTACKERS if name not in known]
    if absent:
        detail += f" Not tried, and maybe stronger: {', '.join(absent)}."
    return Finding(f"{who}, {name_of(best)}, {_gets(best)}.", detail)


def _no_audit() -> Finding:
    return Finding(
        "No observer's clone was measured.",
        "The actions are continuous, which an audit cannot score as yet. What follows says nothing "
        "about real cloners.",
    )


def _ensemble(summary: Mapping, audit: Mapping | None) -> Finding:
    pe_return = interval(summary["pe_return"]["values"])
    optimal = None if audit is None else audit["optimal_return"]
    yardsticks = f"A random policy returns {number(summary['random_return'])}"
    if optimal is not None:
        yardsticks += f", an optimal one {number(optimal)}"
    claim = f"The ensemble (PE) returns {with_interval(pe_return)} an episode."
    if not learned(summary):
        claim += " In at least one seed that is hardly more than a random policy returns."
    how = summary["evaluation"]
    how = "exact" if how == "exact" else f"means over {how}"
    return Finding(claim, f"{yardsticks}. Returns are {how}.")


def _clones(audit: Mapping) -> list[Finding]:
    """Of the plain cloner in both deployments."""
    rows, found = rows_of(audit, RUN), []
    for deployment, who in (
        ("sampled", "An observer who clones and samples"),
        ("greedy", "An observer who clones and acts greedily"),
    ):
        for row in rows:
            if (row["observer"], row["deployment"]) == ("behaviour_cloning", deployment):
                found.append(Finding(f"{who} {_gets(row)}.", _rests_on(row, audit)))
    return found


def name_of(row: Mapping) -> str:
    """As in ``behaviour cloning (greedy)``."""
    return f"{row['observer'].replace('_', ' ')} ({row['deployment']})"


def _gets(row: Mapping) -> str:
    if row["fraction"] is None:
        return f"returns {with_interval(row['clone_return'])}; of how much, no share can be given"
    return _recovers(row["fraction"])


def _recovers(share: Mapping) -> str:
    low, high = ends(share)
    if share["mean"] <= 0:
        versus = "less than a random policy" if high < 0 else "no more than a random policy"
        return f"recovers nothing of the ensemble's return: {percent(share)}, {versus}"
    more = ", more than the ensemble itself" if low > 1.005 else ""
    return f"recovers {percent(share)} of the ensemble's return{more}"


def _rests_on(row: Mapping, audit: Mapping) -> str:
    (defence,) = (defence for defence in audit["defences"] if defence["name"] == RUN)
    return (
        f"Behaviour cloning of {audit['num_steps']:,} demonstration steps, {row['deployment']}, "
        f"returns {with_interval(row['clone_return'])}; the ensemble, measured beside it, "
        f"{number(defence['pe_return']['mean'])}."
    )


def _mixture(summary: Mapping) -> Finding:
    mixture = np.asarray(summary["mixture"]["values"], np.float64)
    shares = _shares(mixture[:, None], summary)
    returns = with_interval(interval(mixture))
    claim = "The paper's observer, the uniform mixture π_o, "
    claim += f"returns {returns}" if shares is None else _recovers(interval(shares[:, 0]))
    return Finding(
        f"{claim}.",
        f"It returns {returns}. It sees no data, looks inside the ensemble and weighs the experts "
        "evenly wherever it goes; what it gets says nothing about a cloner who only watches.",
    )


def _floor(audit: Mapping | None) -> Finding:
    theory = (
        "A clone that is a function of the state goes where the experts go, as often as they do on "
        "average, and so returns what they return on average. No training changes that."
    )
    defences = [] if audit is None else [d for d in audit["defences"] if d["name"] == RUN]
    floor = defences[0]["floor"] if defences else None
    if floor is None:
        return Finding(
            "An observer who fits enough demonstrations, and samples, gets back what the ensemble "
            "returns, but for the episodes that the time limit cuts.",
            f"{theory} This is theory: how much the limit may cost can be computed only where the "
            "environment is a finite MDP.",
        )
    assert audit is not None
    claim = (
        "No observer who fits enough demonstrations, and samples, can be held below "
        f"{number(floor['mean'])}."
    )
    if floor["mean"] < audit["random_return"]:
        return Finding(
            claim,
            "This floor is below what a random policy returns, since the time limit "
            f"({audit['horizon']} steps) cuts so many episodes: here it promises nothing.",
        )
    pe_return = np.asarray(defences[0]["pe_return"]["values"], np.float64)
    distance = float(np.mean(pe_return - np.asarray(floor["values"], np.float64)))
    below = "less than 0.01" if distance < 0.01 else number(distance)
    return Finding(
        claim,
        f"This floor lies {below} below the ensemble: as much as the time limit may cost. {theory}",
    )


def _greedy_experts(config: RunConfig, summary: Mapping, audit: Mapping | None) -> Finding:
    """Whether the experts themselves fail when they are deployed greedily."""
    greedy = np.asarray(summary["greedy_experts"]["values"], np.float64)
    deployed = (
        "acting by their mean action" if config.train.head == "gaussian" else "acting greedily"
    )
    claim = f"The experts themselves, {deployed}, "
    facts = f"They return {with_interval(interval(greedy.mean(axis=1)))}."
    shares = _shares(greedy, summary)
    if shares is None:
        returns = with_interval(interval(greedy.mean(axis=1)))
        sampling = np.mean(summary["pe_return"]["values"])
        return Finding(f"{claim}return {returns}.", f"Sampling, {number(sampling)}.")
    failing = int(np.sum(shares < COLLAPSE_SHARE))
    of = f"of {_count(shares.size, 'expert')}"
    if config.seeds > 1:
        of += f" ({_number_word(len(greedy[0]))} in each of {_count(config.seeds, 'seed')})"
    claim += _recovers(interval(shares.mean(axis=1))).replace("recovers", "recover")
    claim += f"; {_number_word(failing) if failing else 'none'} {of} less than half of it."
    found = None if audit is None else verdicts(audit)
    if found is not None and any(
        (row["observer"], row["deployment"]) == ("behaviour_cloning", "greedy")
        for row in found.kept_out
    ):
        if failing:
            facts += " Their greedy clone may fail as they do, without any trap between them."
        elif config.train.num_experts > 1:
            facts += " Their greedy clone fails all the same: the ensemble is its trap."
    return Finding(claim, facts)


def _collapsed_experts(config: RunConfig, summary: Mapping) -> Finding:
    dead = np.asarray(summary["dead_experts"], bool)
    rule = (
        "Dead: it returns less than half of what the best one of its seed does, counted from a "
        "random policy. None is where nobody learned anything."
    )
    if not dead.any():
        return Finding("No expert is dead.", rule)
    places = []
    for seed, line in enumerate(dead, config.first_seed):
        if line.any():
            numbers = [str(index + 1) for index in np.flatnonzero(line)]
            noun = "expert" if len(numbers) == 1 else "experts"
            places.append(f"{noun} {' and '.join(numbers)} of seed {seed}")
    text, verb = ", ".join(places), "is" if dead.sum() == 1 else "are"
    return Finding(f"{text[0].upper()}{text[1:]} {verb} dead: sacrificed in training.", rule)


def _constraint(summary: Mapping, min_return: float) -> Finding:
    returns = np.asarray(summary["expert_returns"]["values"], np.float64)
    kept = int(np.sum(returns >= min_return))
    whom = "All" if kept == returns.size else f"{_number_word(kept) if kept else 'none'} of"
    whom = whom[0].upper() + whom[1:]
    return Finding(
        f"{whom} {_count(returns.size, 'expert')} keep the return of at least "
        f"{_plain(min_return)} that was asked for.",
        f"The lowest returns {number(returns.min())}.",
    )


def _spread(seeds: int, audit: Mapping | None) -> list[Finding]:
    audited = seeds if audit is None else audit["seeds"]
    found = []
    if audited < seeds:
        found.append(
            Finding(
                f"The audit is of the first {audited} of {seeds} seeds.",
                "What comes from summary.json is of all.",
            )
        )
    if audited == 1:
        text = "There is no interval, and another seed may differ by any amount."
        found.append(Finding("This is one seed.", text))
    elif audited < FEW_SEEDS:
        text = "Bootstrap intervals over so few values are too narrow."
        found.append(Finding(f"These are only {_count(audited, 'seed')}.", text))
    return found


def _shares(returns: np.ndarray, summary: Mapping) -> np.ndarray | None:
    """Of returns [K, X]; None where nobody learned, or PE is no better than random."""
    scale = np.asarray(summary["pe_return"]["values"], np.float64) - summary["random_return"]
    if not learned(summary) or np.any(scale <= 1e-6):
        return None
    return (returns - summary["random_return"]) / scale[:, None]


_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def _count(count: int, noun: str) -> str:
    """As in ``one seed``, ``two seeds``, ``3,000 updates``."""
    return f"{_number_word(count)} {noun}{'' if count == 1 else 's'}"


def _number_word(count: int) -> str:
    return _WORDS[count] if count < len(_WORDS) else f"{count:,}"


def _plain(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def _signed(value: float, digits: int) -> str:
    text = f"{value:,.{digits}f}"
    if not any(digit in text for digit in "123456789"):
        text = text.lstrip("-")
    return text.replace("-", "−")
