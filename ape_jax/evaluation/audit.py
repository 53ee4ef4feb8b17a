"""The audit: every observer against an ensemble, and what each gets."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ape_jax.algorithms.task import Task
from ape_jax.config import Hypers
from ape_jax.core import tabular
from ape_jax.evaluation import attackers, returns, subjects
from ape_jax.evaluation.attackers import ATTACKERS, Effort
from ape_jax.evaluation.audit_records import Audit, AuditRow, Curve, Defence
from ape_jax.evaluation.defences import Ensemble, label_of
from ape_jax.evaluation.deployment import DEPLOYMENTS, Outcome
from ape_jax.evaluation.intervals import Interval
from ape_jax.evaluation.measure import Measures, attack, attack_limited, demonstrate, measure
from ape_jax.evaluation.progress import Progress, ProgressFn, ignore_progress
from ape_jax.evaluation.subjects import Subject
from ape_jax.settings.audit import ALL, AuditSettings
from ape_jax.types import Params, SettingError

HELD_OUT_STEPS = 10_000
"""Fresh steps for log-likelihoods and agreement."""

SHOWN, HELD_OUT, ATTACK, MEASURE, RANDOM = range(5)
"""Purposes of the keys drawn from a seed's evaluation key."""


def audit(
    subject: Path | str | Task | None = None,
    observers: str | Sequence[str] | None = None,
    defences: str | Sequence[str] | None = None,
    seeds: int | None = None,
    steps: int | None = None,
    quick: bool = False,
    progress: ProgressFn = ignore_progress,
    heads: Params | None = None,
    hypers: Hypers | None = None,
) -> Audit:
    """Attack an ensemble with every observer, and measure what each clone gets.

    Args:
      subject: directory of a run, file of demonstrations, or a task; None makes all defences on
        the gridworld and attacks them.
      observers: names of observers; all if None.
      defences: names of ensembles to make and compare with, or ``"all"``. If None: all without a
        subject, else none.
      seeds: seeds to audit; all of the run if None, and without a run 10, or 3 if quick.
      steps: demonstration steps of each seed; 1,000,000 if None, or 100,000 if quick.
      quick: whether this is a first look, with less of everything.
      progress: called after every step.
      heads: the task's experts [K, E, …]; if None they are trained here.
      hypers: hyperparameters of that training; those of the recipe if None.

    Raises:
      SettingError: a setting breaks a rule, or the subject cannot be audited.
      NonFiniteError: losses or parameters of a training are not finite any more.

    Examples:
      >>> import ape_jax
      >>> config = ape_jax.PGConfig(num_updates=2, envs_per_expert=2)
      >>> task = ape_jax.make_task(config, ape_jax.envs.GridWorld(size=3, goal=(0, 1), horizon=8))
      >>> result = ape_jax.audit(task, observers=["behaviour_cloning"], seeds=2, steps=200)
      >>> [row.deployment for row in result.rows]
      ['sampled', 'tempered', 'greedy']
    """
    settings = AuditSettings(
        observers=ALL if observers is None else _text(observers),
        defences=None if defences is None else _text(defences),
        seeds=seeds,
        steps=steps,
        quick=quick,
    )
    *_, result = audit_steps(subject, settings, progress, heads, hypers)
    return result


def audit_steps(
    subject: Path | str | Task | None,
    settings: AuditSettings,
    progress: ProgressFn = ignore_progress,
    heads: Params | None = None,
    hypers: Hypers | None = None,
) -> Iterator[Audit]:
    """Check all settings now; the iterator then trains, attacks, and yields what is known so far.

    Arguments and errors are those of ``audit``.
    """
    started = time.monotonic()
    if settings.steps is not None and settings.steps < 2:
        raise SettingError(f"steps must be at least 2; got {settings.steps}")
    found = subjects.find(subject, settings, progress, heads, hypers)
    names = [*ATTACKERS, *attackers.CONTINUOUS]
    if settings.observers != ALL:
        names = subjects.names_of(settings.observers)
    runs, skipped = attackers.choose(names, has_experts=found.given is None)
    effort = attackers.QUICK if settings.quick else Effort()
    num_steps = settings.steps if found.given is None else found.given.shown.action.shape[1]
    if num_steps is not None:
        effort = effort.within(num_steps)

    def steps():
        result = _empty(found, effort, skipped, settings)
        points = _curve_points(effort) if "limited" in runs else []
        done, total = 0, found.num_ensembles * (1 + len(runs) + len(points))
        progress(Progress("audit", done, total))
        for ensemble in found.ensembles:
            for status, records in _attack_ensemble(found, effort, runs, points, ensemble, result):
                done += 1
                result = dataclasses.replace(
                    result,
                    **{name: getattr(result, name) + new for name, new in records.items()},
                    complete=done == total,
                    wall_seconds=time.monotonic() - started,
                )
                progress(Progress("audit", done, total, f"{label_of(ensemble.name)}: {status}"))
                yield result

    return steps()


def _text(names: str | Sequence[str]) -> str:
    return names if isinstance(names, str) else ",".join(names)


def _empty(
    found: Subject, effort: Effort, skipped: dict[str, str], settings: AuditSettings
) -> Audit:
    task, key = found.task, jax.random.fold_in(found.keys[0], RANDOM)
    random_return = returns.expected_return(task.world, returns.random_policy(task.world), key)
    optimal_return = None
    if task.world.mdp is not None:
        optimal = tabular.optimal_policy(task.world.mdp)
        optimal_return = float(tabular.policy_return(task.world.mdp, optimal))
    return Audit(
        env=found.env,
        horizon=task.world.horizon,
        fingerprint=found.fingerprint,
        options=settings,
        complete=False,
        seeds=len(found.keys),
        num_steps=effort.num_steps,
        random_return=float(random_return),
        optimal_return=optimal_return,
        skipped=skipped,
    )


def _attack_ensemble(
    found: Subject,
    effort: Effort,
    observers: list[str],
    points: list[tuple[str, int]],
    ensemble: Ensemble,
    audit: Audit,
) -> Iterator[tuple[str, dict[str, tuple]]]:
    """Each step's name, and the records that it adds to the audit."""
    keys_shown, keys_held_out, keys_attack, keys_measure = (
        jax.vmap(jax.random.fold_in, (0, None))(found.keys, purpose)
        for purpose in (SHOWN, HELD_OUT, ATTACK, MEASURE)
    )
    task, heads = found.task, ensemble.heads
    if found.given is not None:
        shown, held_out, pe_return = found.given
        summarise = Interval.percentiles
        defence = Defence(name=ensemble.name, label=ensemble.name, pe_return=summarise(pe_return))
    else:
        shown = demonstrate(task, keys_shown, heads, effort.num_steps)
        held_out = demonstrate(task, keys_held_out, heads, HELD_OUT_STEPS)
        measures = measure(task, keys_measure, heads, held_out)
        pe_return = np.mean(np.asarray(measures.experts, np.float64), axis=1)
        summarise, defence = Interval.over_seeds, _known(ensemble, measures, audit.optimal_return)
    yield "demonstrations", {"defences": (defence,)}
    for observer in observers:
        outcomes = attack(task, effort, observer, keys_attack, heads, shown, held_out)
        rows = tuple(
            AuditRow(
                defence=ensemble.name,
                observer=observer,
                deployment=deployment,
                sees=ATTACKERS[observer].sees(effort),
                **_scores(outcomes[deployment], pe_return, audit.random_return, summarise),
            )
            for deployment in DEPLOYMENTS
            if deployment in outcomes
        )
        yield observer, {"rows": rows}
    for axis, value in points:
        num_steps, width = value, max(effort.curve_widths)
        if axis == "width":
            num_steps, width = effort.num_steps, value
        clone_returns = attack_limited(task, effort, num_steps, width, keys_attack, shown)
        curves = tuple(
            Curve(
                defence=ensemble.name,
                axis=axis,
                value=value,
                deployment=deployment,
                clone_return=summarise(clone_return),
            )
            for deployment, clone_return in clone_returns.items()
        )
        yield f"{axis} {value}", {"curves": curves}


def _scores(
    outcome: Outcome,
    pe_return: np.ndarray,
    random_return: float,
    summarise: Callable[[Any], Interval],
) -> dict[str, Any]:
    clone, scale = np.asarray(outcome.clone_return, np.float64), pe_return - random_return
    log_likelihood = outcome.log_likelihood
    return {
        "clone_return": summarise(clone),
        "gap": summarise(pe_return - clone),
        "fraction": summarise((clone - random_return) / scale) if np.all(scale > 1e-6) else None,
        "agreement": summarise(outcome.agreement),
        "log_likelihood": None if log_likelihood is None else summarise(log_likelihood),
    }


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
        worst_expert=interval(experts.min(axis=1)),
        greedy_experts=interval(np.mean(measures.greedy_experts, axis=1)),
        worst_greedy_expert=interval(np.min(measures.greedy_experts, axis=1)),
        price=None if optimal_return is None else interval(optimal_return - pe_return),
        floor=interval(measures.floor),
        mixture_entropy=interval(measures.mixture_entropy),
        posterior_entropy=tuple(map(interval, entropy.T)) if ensemble.num_experts > 1 else None,
    )


def _curve_points(effort: Effort) -> list[tuple[str, int]]:
    """Axis and value of every point of the curves of limited observers."""
    steps = [("num_steps", value) for value in effort.curve_steps]
    return steps + [("width", value) for value in effort.curve_widths]
