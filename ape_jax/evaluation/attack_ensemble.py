"""The attacks on one ensemble: all observers, the strongest of each threat model, its curve."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.evaluation import attackers, threats
from ape_jax.evaluation.attackers import ATTACKERS, NEEDS
from ape_jax.evaluation.audit_records import Audit, AuditRow, Curve, Defence
from ape_jax.evaluation.defences import Ensemble, label_of
from ape_jax.evaluation.deployment import DEPLOYMENTS, Outcome
from ape_jax.evaluation.effort import Effort
from ape_jax.evaluation.intervals import Interval
from ape_jax.evaluation.measure import Measures, attack, demonstrate, measure
from ape_jax.evaluation.subjects import Subject
from ape_jax.evaluation.threats import Scale

HELD_OUT_STEPS = 10_000
"""Fresh steps for log-likelihoods and agreement."""

SHOWN, HELD_OUT, ATTACK, MEASURE, RANDOM = range(5)
"""Purposes of the keys drawn from a seed's evaluation key."""

Records = dict[str, Any]
"""Records that a step adds to an audit, by field."""


def attack_ensemble(
    found: Subject,
    effort: Effort,
    observers: Sequence[str],
    models: Sequence[str],
    ensemble: Ensemble,
    audit: Audit,
) -> Iterator[tuple[str, Records]]:
    """Each step's name, and the records that it adds to the audit.

    Args:
      found: the subject that the ensemble is of.
      effort: how much observers may see and compute.
      observers: names of the observers to run.
      models: names of threat models to report.
      ensemble: the ensemble to attack.
      audit: what is known so far.
    """
    keys_shown, keys_held_out, keys_attack, keys_measure = (
        jax.vmap(jax.random.fold_in, (0, None))(found.keys, purpose)
        for purpose in (SHOWN, HELD_OUT, ATTACK, MEASURE)
    )
    task, heads = found.task, ensemble.heads
    if found.given is not None:
        shown, held_out, pe_return = found.given
        scale = Scale(pe_return, audit.random_return, Interval.percentiles)
        defence = Defence(
            name=ensemble.name, label=ensemble.name, pe_return=scale.summarise(pe_return)
        )
    else:
        shown = demonstrate(task, keys_shown, heads, effort.num_steps)
        held_out = demonstrate(task, keys_held_out, heads, HELD_OUT_STEPS)
        measures = measure(task, keys_measure, heads, held_out)
        pe_return = np.mean(np.asarray(measures.experts, np.float64), axis=1)
        scale = Scale(pe_return, audit.random_return, Interval.over_seeds)
        defence = _known(ensemble, measures, audit.optimal_return)
    yield "demonstrations", {"defences": (defence,)}

    def run(observer: str, shown: Demonstrations) -> dict[str, Outcome]:
        found = attack(task, effort, observer, keys_attack, heads, shown, held_out)
        return {name: found[name] for name in sorted(found, key=_order)}

    missing = attackers.lacks(shown)
    outcomes: dict[tuple[str, str], Outcome] = {}
    for observer in observers:
        lacking = [need for need in ATTACKERS[observer].needs if need in missing]
        if lacking:
            yield observer, {"skipped": {observer: NEEDS[lacking[0]]}}
            continue
        of_observer = run(observer, shown)
        outcomes |= {(observer, deployment): x for deployment, x in of_observer.items()}
        yield observer, {"rows": _rows(ensemble.name, observer, of_observer, scale)}
    strongest = threats.threat_rows(ensemble.name, models, outcomes, scale)
    points: list[Curve] = []
    for num_steps in effort.curve_steps:
        points += threats.points(strongest, run, shown, num_steps, scale)
        yield f"{num_steps:,} steps", {}
    counted = threats.with_episodes(strongest, points)
    yield "threats", {"threats": counted, "curves": tuple(points)}


def _order(deployment: str) -> int:
    """Place in a table; a program gives back its results by name."""
    return DEPLOYMENTS.index(deployment.split(",")[0])


def _rows(
    defence: str, observer: str, outcomes: dict[str, Outcome], scale: Scale
) -> tuple[AuditRow, ...]:
    rows = []
    for deployment, outcome in outcomes.items():
        clone_return = np.asarray(outcome.clone_return, np.float64)
        likelihood = outcome.log_likelihood if deployment.startswith("sampled") else None
        rows.append(
            AuditRow(
                defence=defence,
                observer=observer,
                deployment=deployment,
                sees=attackers.threat_of(observer, deployment) or "experts",
                clone_return=scale.summarise(clone_return),
                gap=scale.summarise(scale.pe_return - clone_return),
                fraction=scale.fraction(clone_return),
                agreement=scale.summarise(outcome.agreement),
                log_likelihood=None if likelihood is None else scale.summarise(likelihood),
            )
        )
    return tuple(rows)


def _known(ensemble: Ensemble, measures: Measures, optimal_return: float | None) -> Defence:
    """An ensemble that was measured; arrays [K, …]."""

    def interval(values):
        return None if values is None else Interval.over_seeds(values)

    experts = np.asarray(measures.experts, np.float64)
    pe_return = experts.mean(axis=1)
    entropy = np.asarray(measures.posterior_entropy, np.float64)
    return Defence(
        name=ensemble.name,
        label=label_of(ensemble.name),
        num_experts=ensemble.num_experts,
        **ensemble.facts,
        pe_return=Interval.over_seeds(pe_return),
        expert_returns=tuple(map(tuple, experts.tolist())),
        worst_expert=interval(experts.min(axis=1)),
        greedy_experts=interval(np.mean(measures.greedy_experts, axis=1)),
        worst_greedy_expert=interval(np.min(measures.greedy_experts, axis=1)),
        price=None if optimal_return is None else interval(optimal_return - pe_return),
        floor=interval(measures.floor),
        mixture_entropy=interval(measures.mixture_entropy),
        posterior_entropy=tuple(map(interval, entropy.T)) if ensemble.num_experts > 1 else None,
    )
