"""The suite: ensembles and their controls in many environments, and the clones made of them."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ape_jax import presets
from ape_jax.algorithms import steps_per_update
from ape_jax.algorithms.task import Task, make_task
from ape_jax.config import Hypers, RunConfig, TrainConfig
from ape_jax.core.policies import greedy
from ape_jax.demonstrations import collect
from ape_jax.evaluation import returns
from ape_jax.evaluation.intervals import Interval
from ape_jax.evaluation.progress import Progress, ProgressFn, ignore_progress, train
from ape_jax.networks import make_networks
from ape_jax.observers import BehaviourCloning, MeanAction, Posterior, TabularCloning
from ape_jax.training.trainer import EVALUATE, RANDOM, seed_keys
from ape_jax.types import Params, PRNGKey, SettingError

VARIANTS = ("ensemble", "beta0", "single")
"""The trainings of a row: the preset, the same without an observer, the same with one expert."""

Presets = str | Sequence[str] | Mapping[str, RunConfig] | None
"""Names of presets or environments, or settings by name; None stands for all presets."""


@dataclasses.dataclass(frozen=True)
class SuiteEffort:
    """Amounts of data and computation of the measurements. Hashable."""

    num_steps: int = 256_000
    fit_updates: int = 1000
    """Updates of every clone that is a network, and of the posterior's classifier."""
    num_episodes: int = 256
    """Episodes behind each return that is sampled."""


QUICK = SuiteEffort(num_steps=25_600, fit_updates=100, num_episodes=64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Control:
    """Returns of an ensemble and of its clones."""

    pe_return: Interval
    worst_expert: Interval
    greedy_experts: Interval
    """Mean over the experts, each taking its most probable, or mean, actions."""
    worst_greedy_expert: Interval
    clones: dict[str, Interval]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteRow:
    """One preset: its ensemble, as in ``Control``, and two controls."""

    preset: str
    env: str
    config: dict[str, Any]
    effort: SuiteEffort
    seeds: int
    num_experts: int
    pe_return: Interval
    worst_expert: Interval
    greedy_experts: Interval
    worst_greedy_expert: Interval
    clones: dict[str, Interval]
    dead_experts: int
    """Collapsed experts, over all seeds."""
    beta0_return: Interval
    """Return of the ensemble without an observer."""
    random_return: float
    beta0_control: Control
    single_expert_control: Control
    steps_per_second: float | None
    """Environment steps of training; None where the run was too short to leave compiling out."""


@dataclasses.dataclass(frozen=True)
class Suite:
    """The content of ``suite.json``."""

    rows: tuple[SuiteRow, ...]


def suite(
    presets: Presets = None,
    seeds: int = 5,
    first_seed: int = 1000,
    quick: bool = False,
    progress: ProgressFn = ignore_progress,
) -> Suite:
    """Train ensembles and their controls in several environments, and clone them all.

    Args:
      presets: names of presets or of their environments, or settings by name; all presets if None.
      seeds: seeds behind every number.
      first_seed: number of the first seed; presets were tuned on seeds below 1000.
      quick: whether this is a first look, with a twentieth of the updates and a tenth of the
        demonstrations.
      progress: called after every chunk of training and every clone.

    Raises:
      SettingError: a setting breaks a rule.
      NonFiniteError: losses or parameters are not finite any more.

    Examples:
      >>> import ape_jax
      >>> config = ape_jax.PGConfig(
      ...     env_param=("max_steps_in_episode=10",), envs_per_expert=2, num_updates=2
      ... )
      >>> tiny = ape_jax.RunConfig(config)
      >>> result = ape_jax.suite({"tiny": tiny}, seeds=1, quick=True)
      >>> sorted(result.rows[0].clones)
      ['behaviour_cloning_greedy', 'behaviour_cloning_sampled', 'posterior_sampled']
    """
    configs = suite_configs(presets, seeds, first_seed, quick)
    return Suite(tuple(suite_rows(configs, QUICK if quick else SuiteEffort(), progress)))


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
    configs: Mapping[str, RunConfig], effort: SuiteEffort, progress: ProgressFn = ignore_progress
) -> Iterator[SuiteRow]:
    """Train and measure one row after the other, and yield each as soon as it is finished."""
    for done, (name, config) in enumerate(configs.items()):

        def report(status: str, name=name, done=done) -> None:
            progress(Progress("suite", done, len(configs), f"{name}: {status}"))

        yield _row(name, config, effort, report)
        progress(Progress("suite", done + 1, len(configs), name))


class Measured(NamedTuple):
    """Returns of one ensemble and of its clones; with a leading axis K where it is of all seeds."""

    experts: Float[Array | np.ndarray, "... E"]
    greedy_experts: Float[Array | np.ndarray, "... E"]
    clones: dict[str, Float[Array | np.ndarray, "..."]]


def variant(name: str, config: TrainConfig, hypers: Hypers) -> tuple[TrainConfig, Hypers]:
    """Settings of one of the ``VARIANTS``."""
    if name == "beta0":
        hypers = dataclasses.replace(hypers, beta=0.0, min_return=None)
        config = config.without_observer()
    if name == "single":
        config = dataclasses.replace(config, num_experts=1, observer="uniform")
    return config, hypers


@partial(jax.jit, static_argnums=(0, 1))
def measure(task: Task, effort: SuiteEffort, heads: Params, key: PRNGKey) -> Measured:
    """Returns of one ensemble, heads [E, …], and of its clones."""
    key_own, key_shown, *keys = jax.random.split(key, 6)
    own = returns.ensemble_returns(task, heads, key_own, effort.num_episodes)
    shown, _ = collect.collect(key_shown, task, heads, effort.num_steps)
    clones: dict[str, Any] = {}

    def score(name: str, policy: Any):
        clones[name] = returns.expected_return(task.world, policy, keys[1], effort.num_episodes)

    networks, world = task.networks, task.world
    if networks.num_states is not None:
        clone: Any = TabularCloning(networks.num_states, networks.num_actions).fit(keys[0], shown)
    else:
        own_kind = make_networks(
            task.config.with_state_std(), world.observation_space, world.action_space
        )
        cloning = BehaviourCloning(
            own_kind, num_updates=effort.fit_updates, batch_size=2048, learning_rate=3e-3
        )
        clone = cloning.fit(keys[0], shown)
    score("behaviour_cloning_sampled", clone)
    score("behaviour_cloning_greedy", greedy(clone))
    posterior = Posterior(task, heads, num_updates=effort.fit_updates)
    score("posterior_sampled", posterior.fit(keys[2], None))
    if networks.action_bounds is not None:
        regression = MeanAction(num_updates=effort.fit_updates)
        score("mean_action", regression.fit(keys[3], shown))
    return Measured(own.experts, own.greedy_experts, clones)


def train_seeds(
    name: str, task: Task, keys: Key[Array, " K"], hypers: Hypers, report: Callable[[str], None]
) -> tuple[Params, float | None]:
    """Train one ensemble for each key, and report in words how far the training of this name is.

    Seeds are trained side by side. Only where observations are images they are trained one after
    the other: the images of all seeds at once take gigabytes, and more time.

    Returns:
      Heads [K, E, …], and environment steps for each second. The latter is None where the run was
      too short to leave compiling out.

    Raises:
      NonFiniteError: losses or parameters are not finite any more.
    """
    together = 1 if task.config.head == "conv" else len(keys)
    heads, updates_timed, seconds = [], 0, 0.0
    for first in range(0, len(keys), together):
        which = f"seed {first + 1}/{len(keys)}" if together == 1 else f"{len(keys)} seeds"
        times: list[tuple[int, float]] = []  # Before compiling, and after each chunk of updates.

        def trained(progress: Progress, which=which, times=times) -> None:
            times.append((progress.done, time.monotonic()))
            report(f"{name} {progress.done}/{task.config.num_updates}, {which}")

        state, _ = train(which, task, keys[first : first + together], hypers, trained)
        heads.append(state.params.heads)
        (num_first, first_time), (num_last, last_time) = times[1], times[-1]
        updates_timed += together * (num_last - num_first)
        seconds += last_time - first_time
    speed = updates_timed * steps_per_update(task) / seconds if updates_timed else None
    return jax.tree.map(lambda *x: jnp.concatenate(x), *heads), speed


def _row(
    name: str, config: RunConfig, effort: SuiteEffort, report: Callable[[str], None]
) -> SuiteRow:
    """Train the ensemble and the controls of one preset, and clone them all."""
    results: dict[str, Measured] = {}
    speeds = []
    first_seed, num_seeds = config.first_seed, config.seeds
    with_observer = make_task(config.train)
    for which in VARIANTS:
        settings, hypers = variant(which, config.train, config.hypers)
        task = with_observer if which == "ensemble" else make_task(settings)
        heads, speed = train_seeds(which, task, seed_keys(first_seed, num_seeds), hypers, report)
        speeds.append(speed)
        # The heads are the same with an observer and without, so one program measures both.
        measured_in = task if which == "single" else with_observer
        measured = []
        for seed, key in enumerate(seed_keys(first_seed, num_seeds, EVALUATE)):
            report(f"{which}, clones of seed {seed + 1}/{num_seeds}")
            own = jax.tree.map(lambda x, seed=seed: x[seed], heads)
            measured.append(jax.device_get(measure(measured_in, effort, own, key)))
        results[which] = jax.tree.map(lambda *x: np.stack(x), *measured)
    key_random = seed_keys(first_seed, 1, RANDOM)[0]
    at_random = returns.random_return(task.world, key_random, effort.num_episodes)
    return make_row(name, config, effort, results, at_random, speeds[0])


def make_row(
    name: str,
    config: RunConfig,
    effort: SuiteEffort,
    results: Mapping[str, Measured],
    at_random: returns.Spread,
    speed: float | None,
) -> SuiteRow:
    """Summarise the returns [K, …] of every variant over seeds."""
    ensemble, beta0, single = (_summarise(results[which]) for which in VARIANTS)
    collapsed = returns.collapsed_experts(results["ensemble"].experts, at_random)
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
        random_return=at_random.mean,
        beta0_control=beta0,
        single_expert_control=single,
        steps_per_second=speed,
    )


def _summarise(measured: Measured) -> Control:
    interval = Interval.over_seeds
    return Control(
        pe_return=interval(measured.experts.mean(axis=1)),
        worst_expert=interval(measured.experts.min(axis=1)),
        greedy_experts=interval(measured.greedy_experts.mean(axis=1)),
        worst_greedy_expert=interval(measured.greedy_experts.min(axis=1)),
        clones={name: interval(values) for name, values in measured.clones.items()},
    )
