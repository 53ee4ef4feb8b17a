"""Findings from the numbers of a run and its audit, in plain sentences that name the observer."""

from typing import NamedTuple

import numpy as np

from ape_jax.config import RunConfig
from ape_jax.evaluation.attackers import ATTACKERS
from ape_jax.evaluation.audit_records import Audit, AuditRow
from ape_jax.evaluation.intervals import Interval
from ape_jax.evaluation.subjects import RUN
from ape_jax.evaluation.summary import Summary
from ape_jax.evaluation.verdicts import MEANING, PROTECTED_SHARE, price_share, verdict
from ape_jax.reporting.audit_table import YARDSTICKS
from ape_jax.reporting.tables import with_interval

FEW_SEEDS = 5
"""Intervals of fewer seeds are wide, and need normal values; the report says so."""


class Finding(NamedTuple):
    """One thing that the numbers say."""

    claim: str
    detail: str
    """The numbers and conditions behind the claim."""


def find(config: RunConfig, summary: Summary, audit: Audit | None) -> list[Finding]:
    """Everything worth a sentence, the answer to the main question first.

    The audit is that of the run; None where it cannot be audited.
    """
    base = summary.random_return if audit is None else audit.random_return
    found = [
        *([] if audit is None else _threats(audit)),
        _protection(audit),
        _ensemble(summary, base, audit),
        *([] if audit is None else _clones(audit)),
        _mixture(summary, base),
        _floor(audit),
        _greedy_experts(summary, base, audit),
        _collapsed_experts(config, summary),
    ]
    if config.hypers.min_return is not None:
        found.append(_constraint(summary, config.hypers.min_return))
    return found + _seeds(config.seeds if audit is None else audit.seeds, config.seeds)


def statement(config: RunConfig) -> str:
    """A sentence that says how the run was trained."""
    train, hypers = config.train, config.hypers
    observers = {
        "none": "without an observer",
        "uniform": "against the uniform mixture π_o",
        "posterior": "against the posterior mixture (exact weights)",
        "learned": "against the posterior mixture (learned weights)",
    }
    numbers = f"β = {hypers.beta:g}, temperature {hypers.temperature:g}"
    if hypers.min_return is not None:
        numbers += f", return of at least {hypers.min_return:g} for each expert"
    return (
        f"{_count(train.num_experts, 'expert')}, trained with {train.algorithm.upper()}-APE on "
        f"{', '.join([train.env, *train.env_param])} for {_count(train.num_updates, 'update')} "
        f"{observers[train.observer]} ({numbers}); {_count(config.seeds, 'seed')}."
    )


def learned(summary: Summary) -> bool:
    """Whether in every seed some expert is better than a random policy by more than its spread.

    If not, a share of the ensemble's return would be a share of noise.
    """
    best = np.max(summary.expert_returns.array, axis=1)
    return bool(np.all(best > summary.random_return + summary.random_std))


def verdicts(audit: Audit) -> dict[str, list[AuditRow]]:
    """Clones of the run by observers that do not look inside, by how certainly they are kept out.

    The strongest clone is first. There are no verdicts where a row has no share.
    """
    found: dict[str, list[AuditRow]] = {"kept_out": [], "not_kept_out": [], "undecided": []}
    for row in attacks_on(audit):
        if row.fraction is None:
            return {}
        low, high = row.fraction.ends
        certain = "kept_out" if high < PROTECTED_SHARE else "not_kept_out"
        found["undecided" if low < PROTECTED_SHARE <= high else certain].append(row)
    return found if any(found.values()) else {}


def attacks_on(audit: Audit) -> list[AuditRow]:
    """Clones of the run by observers that do not look inside, the strongest first."""
    return [row for row in audit.rows_of(RUN) if row.observer not in YARDSTICKS]


def number(value: float) -> str:
    """Text such as ``-12.85`` or ``1,024.00``."""
    return f"{value:z,.2f}"


def text_of(interval: Interval) -> str:
    """Text such as ``-12.85 [-13.20, -12.51]``."""
    return with_interval(interval, "z,.2f")


def percent(interval: Interval) -> str:
    """Text such as ``98% [97%, 101%]``, for a share."""
    return with_interval(interval, "z.0%")


def name_of(row: AuditRow) -> str:
    """Text such as ``behaviour cloning (greedy)``."""
    return f"{row.observer.replace('_', ' ')} ({row.deployment})"


def _threats(audit: Audit) -> list[Finding]:
    """Under which threat models the run is protected; nothing where a share is not known."""
    rows = audit.threats_of(RUN)
    if not rows or any(row.fraction is None for row in rows):
        return []
    (defence,) = (defence for defence in audit.defences if defence.name == RUN)
    price = price_share(audit, defence)
    answers: dict[str, list[str]] = {}
    gets = []
    for row in rows:
        assert row.fraction is not None
        answers.setdefault(verdict(row.fraction, price), []).append(row.threat)
        who = f"{row.attacker.replace('_', ' ')} ({row.deployment})"
        gets.append(f"{row.threat}: {who} gets {percent(row.fraction)}")
    said = "; ".join(f"{answer} under {', '.join(names)}" for answer, names in answers.items())
    claim = f"By the strongest attacker of each threat model the run is {said}."
    return [Finding(claim, f"{'. '.join(gets)}. {MEANING}")]


def _protection(audit: Audit | None) -> Finding:
    if audit is None:
        return Finding(
            "No observer's clone was measured.",
            "The actions are continuous, and an audit cannot score them. What follows says nothing "
            "about real cloners.",
        )
    nothing = "Nothing can be said about protection."
    rows = attacks_on(audit)
    if not rows:
        return Finding(nothing, "The audit holds no real cloner.")
    best = rows[0]
    if not verdicts(audit):
        return Finding(
            nothing,
            "In at least one seed no expert is clearly better than a random policy: there is "
            "nothing to protect, and no scale for shares.",
        )
    tried = {row.observer for row in rows}
    known = {*tried, *YARDSTICKS, *audit.skipped}
    absent = [name.replace("_", " ") for name in ATTACKERS if name not in known]
    detail = (
        f"Its threat model: {best.sees}. An observer is kept out if its clone gets less than "
        f"{PROTECTED_SHARE:.0%} of the ensemble's return, over the whole interval. Shares count "
        "from the return of a random policy (0%) to that of the ensemble (100%)."
    )
    if absent:
        detail += f" Observers that were not tried may be stronger: {', '.join(absent)}."
    who = f"The strongest of {_count(len(tried), 'observer')} is {name_of(best)}"
    return Finding(f"{who}. Its clone {_gets(best)}.", detail)


def _ensemble(summary: Summary, base: float, audit: Audit | None) -> Finding:
    pe_return = Interval.over_seeds(summary.pe_return.array)
    claim = f"The ensemble (PE) returns {text_of(pe_return)} in an episode."
    if not learned(summary):
        claim += " In at least one seed that is hardly more than a random policy returns."
    detail = f"A random policy returns {number(base)}"
    if audit is not None and audit.optimal_return is not None:
        detail += f", an optimal one {number(audit.optimal_return)}"
    return Finding(claim, f"{detail}. Evaluation: {summary.evaluation}.")


def _clones(audit: Audit) -> list[Finding]:
    """One finding for each deployment of the plain cloner that samples or acts greedily."""
    return [
        Finding(
            f"The clone of an observer who uses {name_of(row)} {_gets(row)}.",
            f"It was fitted to {audit.num_steps:,} demonstration steps, and returns "
            f"{text_of(row.clone_return)}.",
        )
        for deployment in ("sampled", "greedy")
        for row in audit.rows_of(RUN)
        if (row.observer, row.deployment) == ("behaviour_cloning", deployment)
    ]


def _gets(row: AuditRow) -> str:
    if row.fraction is None:
        return f"returns {text_of(row.clone_return)}; no share of the ensemble's can be given"
    return _recovers(row.fraction)


def _recovers(share: Interval) -> str:
    text = f"gets {percent(share)} of the ensemble's return"
    if share.mean <= 0:
        return f"{text}, no more than a random policy"
    return f"{text}, more than the ensemble itself" if share.ends[0] > 1.005 else text


def _mixture(summary: Summary, base: float) -> Finding:
    values = summary.mixture.array
    shares = _shares(values[:, None], summary, base)
    returns = f"returns {text_of(Interval.over_seeds(values))}"
    gets = returns if shares is None else _recovers(Interval.over_seeds(shares[:, 0]))
    return Finding(
        f"The paper's observer, the uniform mixture π_o, {gets}.",
        f"It {returns}. It sees no data: it looks inside the ensemble, and gives all experts equal "
        "weight in every state. This says nothing about a cloner who only watches.",
    )


def _floor(audit: Audit | None) -> Finding:
    who = "An observer who fits enough demonstrations and samples gets"
    theory = (
        "A clone that is a function of the state visits states as often as the experts do on "
        "average, and so returns what they return on average. No training changes that."
    )
    defence = None if audit is None else next((x for x in audit.defences if x.name == RUN), None)
    if audit is None or defence is None or defence.floor is None:
        return Finding(
            f"{who} what the ensemble returns, except in episodes that the time limit cuts.",
            f"{theory} The cost of the time limit is known only for a finite MDP.",
        )
    floor = defence.floor.mean
    if floor < audit.random_return:
        detail = (
            "A random policy returns more: the time limit cuts so many episodes that the floor "
            "promises nothing."
        )
    else:
        detail = f"That is {number(defence.pe_return.mean - floor)} below the ensemble. {theory}"
    return Finding(f"{who} at least {number(floor)}.", detail)


def _greedy_experts(summary: Summary, base: float, audit: Audit | None) -> Finding:
    """Whether the experts themselves fail when they are deployed greedily."""
    greedy = summary.greedy_experts.array
    returns = f"return {text_of(Interval.over_seeds(greedy.mean(axis=1)))}"
    who = "The experts themselves, deployed greedily (or by their mean action),"
    shares = _shares(greedy, summary, base)
    if shares is None:
        return Finding(f"{who} {returns}.", "No share of the ensemble's return can be given.")
    failing = int(np.sum(shares < PROTECTED_SHARE))
    gets = percent(Interval.over_seeds(shares.mean(axis=1)))
    claim = (
        f"{who} get {gets} of the ensemble's return; {failing} of {shares.size} experts, over all "
        f"seeds, get less than {PROTECTED_SHARE:.0%}."
    )
    kept_out = [] if audit is None else verdicts(audit).get("kept_out", [])
    detail = f"They {returns}."
    if ("behaviour_cloning", "greedy") in ((row.observer, row.deployment) for row in kept_out):
        if failing:
            detail += " Their greedy clone may fail because they do, without a trap between them."
        elif greedy.shape[1] > 1:
            detail += " Their greedy clone fails although they do not: the ensemble is its trap."
    return Finding(claim, detail)


def _collapsed_experts(config: RunConfig, summary: Summary) -> Finding:
    rule = (
        "An expert has collapsed if it returns less than half of what the best expert of its seed "
        "does, counted from a random policy. Where nobody learned anything, none has."
    )
    places = [
        f"expert {expert + 1} of seed {config.first_seed + seed}"
        for seed, expert in np.argwhere(summary.dead_experts)
    ]
    claim = f"Collapsed in training: {', '.join(places)}." if places else "No expert has collapsed."
    return Finding(claim, rule)


def _constraint(summary: Summary, min_return: float) -> Finding:
    returns = summary.expert_returns.array
    kept = int(np.sum(returns >= min_return))
    return Finding(
        f"{kept} of {returns.size} experts, over all seeds, keep the required return of at least "
        f"{min_return:g}.",
        f"The lowest returns {number(returns.min())}.",
    )


def _seeds(audited: int, trained: int) -> list[Finding]:
    found = []
    if audited < trained:
        claim = f"The audit is of the first {audited} of {trained} seeds."
        found.append(Finding(claim, "Returns of the run itself are of all seeds."))
    if audited == 1:
        detail = "There is no interval, and another seed may differ by any amount."
        found.append(Finding("This is one seed.", detail))
    elif audited < FEW_SEEDS:
        detail = (
            "Intervals over so few values are wide. They are right for values that are normally "
            "distributed, and too narrow where most seeds agree and a few fail."
        )
        found.append(Finding(f"There are only {audited} seeds.", detail))
    return found


def _shares(returns: np.ndarray, summary: Summary, base: float) -> np.ndarray | None:
    """Shares of returns [K, X]; None where nobody learned, or PE is no better than random."""
    scale = summary.pe_return.array - base
    if not learned(summary) or np.any(scale <= 1e-6):
        return None
    return (returns - base) / scale[:, None]


def _count(count: int, noun: str) -> str:
    """Text such as ``1 seed`` or ``3,000 updates``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
