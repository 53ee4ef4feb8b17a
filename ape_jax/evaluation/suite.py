"""The suite: ensembles and their controls in many environments, and the clones made of them."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ape_jax import presets
from ape_jax.algorithms.task import Task
from ape_jax.config import RunConfig
from ape_jax.evaluation import attackers, returns
from ape_jax.evaluation.attack_ensemble import attack_ensemble
from ape_jax.evaluation.attackers import ATTACKERS
from ape_jax.evaluation.audit_records import Audit, AuditRow
from ape_jax.evaluation.defences import Ensemble
from ape_jax.evaluation.effort import Effort
from ape_jax.evaluation.intervals import Interval, permutation_test
from ape_jax.evaluation.progress import Progress, ProgressFn, ignore_progress
from ape_jax.evaluation.subjects import Subject
from ape_jax.evaluation.suite_records import Control, Suite, SuiteRow
from ape_jax.evaluation.suite_training import (
    CONTROL_BETAS,
    VARIANTS,
    at_price,
    train_variant,
)
from ape_jax.observers.threats import THREATS
from ape_jax.settings.audit import AuditSettings
from ape_jax.training.trainer import EVALUATE, RANDOM, seed_keys
from ape_jax.types import Params, SettingError

CONTROL_OBSERVERS = ("behaviour_cloning", "mean_action", "posterior")
"""Observers that attack the controls."""

GREEDY_CLONE = "behaviour_cloning_greedy"

Presets = str | Sequence[str] | Mapping[str, RunConfig] | None
"""Names of presets or environments, or settings by name; None stands for all presets."""

EFFORT = Effort(
    num_steps=256_000,
    curve_steps=(),
    fit_updates=2000,
    recurrent_updates=300,
    gail_updates=150,
    dagger_rounds=4,
    practice_steps=50_000,
    num_episodes=512,
)
"""Amounts of data and computation of the measurements."""

QUICK = Effort(
    num_steps=25_600,
    curve_steps=(),
    fit_updates=100,
    recurrent_updates=60,
    latent_restarts=2,
    gail_updates=10,
    dagger_rounds=2,
    practice_steps=5_000,
    num_episodes=64,
)


def suite(
    presets: Presets = None,
    seeds: int = 5,
    first_seed: int = 1000,
    quick: bool = False,
    progress: ProgressFn = ignore_progress,
    observers: Sequence[str] = tuple(ATTACKERS),
) -> Suite:
    """Train ensembles and their controls in several environments, and clone them all.

    Args:
      presets: names of presets or of their environments, or settings by name; all presets if None.
      seeds: seeds behind every number.
      first_seed: number of the first seed; presets were tuned on seeds below 1000.
      quick: whether this is a first look, with a twentieth of the updates and a tenth of the
        demonstrations.
      progress: called after every chunk of training and every clone.
      observers: names of the observers that attack the ensembles, ``behaviour_cloning`` among them.

    Raises:
      SettingError: a setting breaks a rule.
      NonFiniteError: losses or parameters are not finite any more.

    Examples:
      >>> import ape_jax
      >>> config = ape_jax.PGConfig(
      ...     env_param=("max_steps_in_episode=10",), envs_per_expert=2, num_updates=2
      ... )
      >>> tiny = ape_jax.RunConfig(config)
      >>> observers = ("behaviour_cloning", "offline_q")
      >>> result = ape_jax.suite({"tiny": tiny}, seeds=1, quick=True, observers=observers)
      >>> [row.threat for row in result.rows[0].threats][:3]
      ['pooled', 'sequences', 'rewards']
    """
    configs = suite_configs(presets, seeds, first_seed, quick)
    effort = QUICK if quick else EFFORT
    return Suite(tuple(suite_rows(configs, effort, progress, observers=observers)))


def suite_configs(
    presets: Presets, seeds: int, first_seed: int, quick: bool
) -> dict[str, RunConfig]:
    """Settings of every row by its name, with the arguments of ``suite``.

    Raises:
      SettingError: a setting breaks a rule.
    """
    if not isinstance(presets, Mapping):
        presets = _chosen(presets)
    configs = {}
    for name, config in presets.items():
        settings = config.train
        if quick:
            settings = dataclasses.replace(settings, num_updates=max(settings.num_updates // 20, 2))
        configs[name] = RunConfig(settings, config.hypers, seeds, first_seed)
    return configs


def _chosen(names: str | Sequence[str] | None) -> dict[str, RunConfig]:
    """Presets by name, of names of presets or environments; all presets if None."""
    known = {name: presets.config(name) for name in presets.PRESETS}
    if names is None:
        return known
    if isinstance(names, str):
        names = [name.strip() for name in names.split(",") if name.strip()]
    by_env = {config.train.env: name for name, config in known.items()}
    chosen = [by_env.get(name, name) for name in names]
    for name in chosen:
        if name not in known:
            raise SettingError(
                f"only must name presets or environments of {', '.join(known)}; got {name!r}"
            )
    if not chosen:
        raise SettingError("only must name a preset or an environment; got none")
    return {name: known[name] for name in chosen}


def suite_rows(
    configs: Mapping[str, RunConfig],
    effort: Effort,
    progress: ProgressFn = ignore_progress,
    keep: Path | None = None,
    observers: Sequence[str] = tuple(ATTACKERS),
) -> Iterator[SuiteRow]:
    """Train and measure one row after the other, and yield each as soon as it is finished.

    Experts are kept in the directory ``keep``, if there is one, and those that are there already
    are not trained again.
    """
    for done, (name, config) in enumerate(configs.items()):

        def report(status: str, name=name, done=done) -> None:
            progress(Progress("suite", done, len(configs), f"{name}: {status}"))

        yield _row(name, config, effort, report, keep, observers)
        progress(Progress("suite", done + 1, len(configs), name))


def attack_run(
    which: str,
    task: Task,
    heads: Params,
    config: RunConfig,
    effort: Effort,
    random_return: float,
    report: Callable[[str], None],
    observers: Sequence[str],
) -> Audit:
    """Attack trained ensembles [K, E, …] with these observers, as far as they can run."""
    keys = seed_keys(config.first_seed, config.seeds, EVALUATE)
    runs, skipped = attackers.choose(observers, list(THREATS), task.world, has_experts=True)
    ensemble = Ensemble(which, task.config.num_experts, heads)
    subject = Subject(task.config.env, task, keys, iter([ensemble]), 1)
    audit = Audit(
        env=task.config.env,
        horizon=task.world.horizon,
        fingerprint=None,
        options=AuditSettings(),
        complete=True,
        seeds=config.seeds,
        num_steps=effort.num_steps,
        random_return=random_return,
        optimal_return=None,
        skipped=skipped,
    )
    for status, found in attack_ensemble(subject, effort, runs, list(THREATS), ensemble, audit):
        audit = audit.joined(found)
        report(f"{which}: {status}")
    return audit


def _row(
    name: str,
    config: RunConfig,
    effort: Effort,
    report: Callable[[str], None],
    keep: Path | None,
    observers: Sequence[str],
) -> SuiteRow:
    """Train the ensemble and the controls of one preset, and attack them all."""
    trained = {which: train_variant(which, name, config, report, keep) for which in VARIANTS}
    task, heads = trained["ensemble"]
    key_random = seed_keys(config.first_seed, 1, RANDOM)[0]
    at_random = returns.random_return(task.world, key_random)
    base = at_random.mean
    attack = partial(attack_run, config=config, effort=effort, random_return=base, report=report)
    audits = {"ensemble": attack("ensemble", task, heads, observers=observers)}
    # The heads are the same with an observer and without, so one program attacks both.
    attack = partial(attack, observers=CONTROL_OBSERVERS)
    audits["beta0"] = attack("beta0", task, trained["beta0"][1])
    task, heads = trained["single"]
    keys = seed_keys(config.first_seed, config.seeds, EVALUATE)
    chosen, heads = at_price(task, heads, keys, audits["ensemble"].defences[0].pe_return.mean)
    audits["single"] = attack("single", task, heads)
    beta = CONTROL_BETAS[chosen] * config.hypers.beta
    return make_row(name, config, effort, audits, beta, at_random)


def make_row(
    name: str,
    config: RunConfig,
    effort: Effort,
    audits: Mapping[str, Audit],
    single_beta: float,
    at_random: returns.Spread,
) -> SuiteRow:
    """Summarise the audits of every variant."""
    ensemble, beta0, single = (_control(audits[which]) for which in VARIANTS)
    (defence,) = audits["ensemble"].defences
    collapsed = returns.collapsed_experts(np.asarray(defence.expert_returns), at_random)
    scale = beta0.pe_return.mean - at_random.mean
    clones = [x.clones.get(GREEDY_CLONE) for x in (ensemble, single)]
    p_value = None
    if config.seeds > 1 and None not in clones:
        p_value = permutation_test(*(clone.values for clone in clones if clone is not None))
    price = None
    if scale > at_random.std / 100:
        lost = np.asarray(beta0.pe_return.values) - np.asarray(ensemble.pe_return.values)
        price = Interval.over_seeds(lost / scale)
    return SuiteRow(
        **vars(ensemble),
        preset=name,
        env=config.train.env,
        config=config.to_flat(),
        effort=effort,
        seeds=config.seeds,
        num_experts=config.train.num_experts,
        dead_experts=int(collapsed.sum()),
        beta0_return=beta0.pe_return,
        price=price,
        threats=audits["ensemble"].threats,
        skipped=audits["ensemble"].skipped,
        random_return=at_random.mean,
        beta0_control=beta0,
        single_expert_control=single,
        single_beta=single_beta,
        control_p_value=p_value,
    )


def _control(audit: Audit) -> Control:
    (defence,) = audit.defences
    worst, greedy, worst_greedy = (
        getattr(defence, name) for name in ("worst_expert", "greedy_experts", "worst_greedy_expert")
    )
    return Control(
        pe_return=defence.pe_return,
        worst_expert=worst,
        greedy_experts=greedy,
        worst_greedy_expert=worst_greedy,
        clones={_name(row): row.clone_return for row in audit.rows},
    )


def _name(row: AuditRow) -> str:
    return row.observer if row.deployment == "own" else f"{row.observer}_{row.deployment}"
