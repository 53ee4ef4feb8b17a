"""One environment of the suite: ensemble, controls, and the clones that observers make of them."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from ape_jax.algorithms import steps_per_update
from ape_jax.algorithms.task import Task, make_task
from ape_jax.config import CHUNK, Hypers, PPOConfig, RunConfig, TrainConfig
from ape_jax.demonstrations import collect
from ape_jax.evaluation import returns
from ape_jax.evaluation.intervals import interval
from ape_jax.networks import make_networks
from ape_jax.observers import BehaviourCloning, MeanAction, Posterior, TabularCloning
from ape_jax.training import guards
from ape_jax.training.trainer import EVALUATE, RANDOM, Trainer, seed_keys
from ape_jax.types import Params, PRNGKey

VARIANTS = ("ensemble", "beta0", "single")
"""What is trained: the preset, the same without an observer, the same with one expert."""


@dataclasses.dataclass(frozen=True)
class SuiteEffort:
    """How much is measured. Hashable."""

    num_steps: int = 256_000
    """Demonstration steps of each seed."""
    fit_updates: int = 1000
    """Of every clone that is a network, and of the posterior's classifier."""
    num_episodes: int = 256
    """Behind each return where it is sampled."""


class Measured(NamedTuple):
    """Of one ensemble."""

    experts: jax.Array
    """[E], returns of the experts, sampling."""
    greedy_experts: jax.Array
    """[E], taking their most probable, or mean, actions."""
    clones: dict[str, jax.Array]
    """Returns of clones, by observer and deployment."""


def variant(name: str, config: TrainConfig, hypers: Hypers) -> tuple[TrainConfig, Hypers]:
    """The settings of an ensemble or of a control."""
    if name == "beta0":
        hypers = dataclasses.replace(hypers, beta=0.0, min_return=None)
        if isinstance(config, PPOConfig):
            config = dataclasses.replace(config, observer="none")
    if name == "single":
        config = dataclasses.replace(config, num_experts=1, observer="uniform")
    return config, hypers


def measure(task: Task, effort: SuiteEffort, heads: Params, key: PRNGKey) -> Measured:
    """Returns of one ensemble [E, …] and of its clones."""
    key_own, key_shown, *keys = jax.random.split(key, 6)
    own = returns.ensemble_returns(task, heads, key_own, effort.num_episodes)
    shown, _ = collect.collect(key_shown, task, heads, effort.num_steps)
    clones = {}

    def score(name: str, key: PRNGKey, policy: Any):
        clones[name] = returns.expected_return(task.world, policy, key, effort.num_episodes)

    networks = task.networks
    if networks.num_states is not None:
        clone: Any = TabularCloning(networks.num_states, networks.num_actions).fit(keys[0], shown)
    else:
        alone, world = task.config, task.world
        if isinstance(alone, PPOConfig) and networks.action_bounds is not None:
            alone = dataclasses.replace(alone, std="state")
        own_kind = make_networks(alone, world.observation_space, world.action_space)
        clone = BehaviourCloning(own_kind, effort.fit_updates, 2048, 3e-3).fit(keys[0], shown)
    score("behaviour_cloning_sampled", keys[1], clone)
    score("behaviour_cloning_greedy", keys[1], returns.greedy(clone))
    posterior = Posterior(task, heads, num_updates=effort.fit_updates).fit(keys[2], None)
    score("posterior_sampled", keys[1], posterior)
    if networks.action_bounds is not None:
        regression = MeanAction(num_updates=effort.fit_updates).fit(keys[3], shown)
        score("mean_action", keys[1], regression)
    return Measured(own.experts, own.greedy_experts, clones)


def train(
    task: Task, keys: Key[Array, " K"], hypers: Hypers, report: Callable[[str], None]
) -> tuple[Params, float | None]:
    """Train an ensemble a key.

    Seeds are trained side by side, but for images one after another: those of all seeds at once
    take gigabytes, and half as long again.

    Args:
      task: what is trained.
      keys: one a seed.
      hypers: numbers of the training.
      report: told how far it is.

    Returns:
      Heads [K, E, …], and environment steps a second, which is None where the run was too short to
      tell it from compiling.

    Raises:
      NonFiniteError: losses or parameters are not finite any more.
    """
    together = 1 if task.config.head == "conv" else len(keys)
    heads, updates_timed, seconds = [], 0, 0.0
    for first in range(0, len(keys), together):
        started, num_done = time.monotonic(), 0
        which = f"seed {first + 1}/{len(keys)}" if together == 1 else f"{len(keys)} seeds"
        for chunk in Trainer(task).chunks(keys[first : first + together], hypers):
            guards.check(chunk.metrics, chunk.state, num_done)
            num_done = chunk.num_done
            report(f"{num_done}/{chunk.num_updates}, {which}")
            now = time.monotonic()
            if num_done > CHUNK:  # The first chunk compiles.
                updates_timed += chunk.metrics.pe_return.size
                seconds += now - started
            started = now
        heads.append(chunk.state.params.heads)
    speed = updates_timed * steps_per_update(task) / seconds if updates_timed else None
    return jax.tree.map(lambda *x: jnp.concatenate(x), *heads), speed


def run(name: str, config: RunConfig, effort: SuiteEffort, report: Callable[[str], None]) -> dict:
    """Train ensemble and controls of one preset, clone them all: one row of the table.

    Args:
      name: of the preset.
      config: its settings, and the seeds; at least two for an interval.
      effort: how much is measured.
      report: told what goes on.

    Returns:
      The row, as ``suite.json`` holds it.
    """
    results: dict[str, Measured] = {}
    speed = None
    first_seed, num_seeds = config.first_seed, config.seeds
    one = jax.jit(measure, static_argnums=(0, 1))
    with_observer = make_task(config.train)
    for which in VARIANTS:
        settings = variant(which, config.train, config.hypers)
        task = with_observer if which == "ensemble" else make_task(settings[0])
        keys = seed_keys(first_seed, num_seeds)

        def told(progress: str, which=which):
            report(f"{name}: {which} {progress}")

        heads, rate = train(task, keys, settings[1], told)
        if which == "ensemble":
            speed = rate
        # The heads are the same with an observer and without, so one program measures both.
        judged = task if which == "single" else with_observer
        measured = []
        for seed, key in enumerate(seed_keys(first_seed, num_seeds, EVALUATE)):
            report(f"{name}: {which}, clones of seed {seed + 1}/{num_seeds}")
            own = jax.tree.map(lambda x, seed=seed: x[seed], heads)
            measured.append(jax.device_get(one(judged, effort, own, key)))
        results[which] = jax.tree.map(lambda *x: np.stack(x), *measured)
    key_random = seed_keys(first_seed, 1, RANDOM)[0]
    at_random = returns.random_return(task.world, key_random, effort.num_episodes)
    return row(name, config, effort, results, at_random, speed)


def row(
    name: str,
    config: RunConfig,
    effort: SuiteEffort,
    results: dict[str, Measured],
    at_random: returns.Spread,
    speed: float | None,
) -> dict:
    """One row of ``suite.json``; intervals are over seeds.

    Speed is None where the run was too short to tell it from compiling.
    """
    ensemble, beta0, single = (results[which] for which in VARIANTS)

    def summary(measured: Measured) -> dict:
        return {
            "pe_return": interval(measured.experts.mean(axis=1)),
            "worst_expert": interval(measured.experts.min(axis=1)),
            "greedy_experts": interval(measured.greedy_experts.mean(axis=1)),
            "worst_greedy_expert": interval(measured.greedy_experts.min(axis=1)),
            "clones": {observer: interval(values) for observer, values in measured.clones.items()},
        }

    return {
        "preset": name,
        "env": config.train.env,
        "config": config.to_flat(),
        "effort": dataclasses.asdict(effort),
        "seeds": config.seeds,
        "num_experts": config.train.num_experts,
        **summary(ensemble),
        "dead_experts": int(returns.collapsed_experts(ensemble.experts, at_random).sum()),
        "beta0_return": interval(beta0.experts.mean(axis=1)),
        "random_return": at_random.mean,
        "beta0_control": summary(beta0),
        "single_expert_control": summary(single),
        "steps_per_second": speed,
    }
