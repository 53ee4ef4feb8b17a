"""The audit: every observer against an ensemble, and what each gets."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from ape_jax.algorithms.task import Task
from ape_jax.config import Hypers
from ape_jax.core import tabular
from ape_jax.evaluation import attackers, returns, subjects
from ape_jax.evaluation.attack_ensemble import RANDOM, attack_ensemble
from ape_jax.evaluation.attackers import ATTACKERS
from ape_jax.evaluation.audit_records import Audit
from ape_jax.evaluation.defences import label_of
from ape_jax.evaluation.effort import QUICK, Effort
from ape_jax.evaluation.progress import Progress, ProgressFn, ignore_progress
from ape_jax.evaluation.subjects import Subject
from ape_jax.observers.threats import THREATS
from ape_jax.settings.audit import ALL, AuditSettings
from ape_jax.types import Params, SettingError


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
    threats: str | Sequence[str] | None = None,
    first_seed: int = 0,
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
      threats: names of threat models, as in ``ape_jax.observers.threats.THREATS``; all if None.
      first_seed: number of the first seed, where there is no run; a run has its own.

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
        threats=ALL if threats is None else _text(threats),
        first_seed=first_seed,
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
    names, threats = list(ATTACKERS), list(THREATS)
    if settings.observers != ALL:
        names = subjects.names_of(settings.observers)
    if settings.threats != ALL:
        threats = subjects.names_of(settings.threats)
    runs, skipped = attackers.choose(names, threats, found.task.world, found.given is None)
    effort = QUICK if settings.quick else Effort()
    num_steps = settings.steps if found.given is None else found.given.shown.action.shape[1]
    if num_steps is not None:
        effort = effort.within(num_steps)

    def steps():
        result = _empty(found, effort, skipped, settings)
        steps_each = 2 + len(runs) + len(effort.curve_steps)
        done, total = 0, found.num_ensembles * steps_each
        progress(Progress("audit", done, total))
        for ensemble in found.ensembles:
            for status, records in attack_ensemble(found, effort, runs, threats, ensemble, result):
                done += 1
                result = dataclasses.replace(
                    result.joined(records),
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
    random_return = returns.expected_return(task.world, task.world.random_policy(), key)
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
