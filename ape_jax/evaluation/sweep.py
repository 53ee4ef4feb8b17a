"""The frontier over β: the experts' return against what is left to the clone."""

import dataclasses
import functools
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ape_jax.algorithms import exact
from ape_jax.algorithms.task import Task, make_task
from ape_jax.config import RunConfig, recipe
from ape_jax.core.policies import greedy
from ape_jax.envs import GRIDWORLD, Environment
from ape_jax.evaluation import returns
from ape_jax.evaluation.defences import GREEDY_TEMPERATURE, as_tables, greedy_weights
from ape_jax.evaluation.intervals import Interval
from ape_jax.evaluation.measure import over_seeds
from ape_jax.evaluation.progress import Progress, ProgressFn, ignore_progress, train
from ape_jax.observers import Mixture, Posterior
from ape_jax.settings.names import HeadName
from ape_jax.training.trainer import EVALUATE, seed_keys
from ape_jax.types import Params, Policy, SettingError

BETAS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)

TEMPERATURES = {"uniform": 1.0, "greedy": GREEDY_TEMPERATURE}
"""Observers that are trained against and then measured, with their temperature in training: the
uniform mixture, which samples; and the posterior mixture, which is measured greedily."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """All seeds of one β."""

    observer: str
    """The observer trained against, one of ``TEMPERATURES``."""
    training: str
    """``sampled``, or ``exact`` by gradients of exact returns."""
    beta: float
    pe_return: Interval
    worst_expert: Interval
    clone_return: Interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Sampled training beside exact training of the same PE return."""

    observer: str
    beta: float
    pe_return: float
    sampled_gap: float
    """PE return minus clone return."""
    exact_gap: float
    ratio: float | None
    """The sampled gap over the exact one; None where the exact one is not positive."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """The content of ``sweep.json``."""

    env: str
    head: str
    num_experts: int
    horizon: int
    seeds: int
    num_updates: int
    points: tuple[SweepPoint, ...] = ()
    comparison: tuple[Comparison, ...] = ()
    wall_seconds: float = 0.0


def sweep(
    betas: Sequence[float] = BETAS,
    env: str | Environment = GRIDWORLD,
    head: HeadName = "tabular",
    num_experts: int = 2,
    num_updates: int | None = None,
    seeds: int = 5,
    first_seed: int = 0,
    progress: ProgressFn = ignore_progress,
) -> Sweep:
    """Train over β and seeds side by side, against two observers.

    On a finite MDP, training by exact gradients draws the frontier beside the sampled one.

    Args:
      betas: weights of the observer's return.
      env: name of a registered environment, or an environment.
      head: kind of the experts' heads; all other settings are those of its recipe.
      num_experts: experts in an ensemble (E).
      num_updates: updates of sampled training; the recipe's if None.
      seeds: runs for each β.
      first_seed: number of the first seed.
      progress: called after every chunk of training.

    Raises:
      SettingError: a setting breaks a rule.
      NonFiniteError: losses or parameters of sampled training are not finite any more.

    Examples:
      >>> import ape_jax
      >>> grid = ape_jax.envs.GridWorld(size=3, goal=(0, 1), horizon=8)
      >>> result = ape_jax.sweep(betas=[0.3], env=grid, num_updates=2, seeds=1)
      >>> [(point.observer, point.training) for point in result.points]
      [('uniform', 'sampled'), ('uniform', 'exact'), ('greedy', 'sampled'), ('greedy', 'exact')]
    """
    asked = betas, env, head, num_experts, num_updates, seeds, first_seed
    *_, result = sweep_steps(*asked, progress)
    return result


def sweep_steps(
    betas: Sequence[float],
    env: str | Environment,
    head: HeadName,
    num_experts: int,
    num_updates: int | None,
    seeds: int,
    first_seed: int,
    progress: ProgressFn,
) -> Iterator[Sweep]:
    """Check all settings now; the iterator then trains, and yields what is known after each point.

    Arguments and errors are those of ``sweep``.
    """
    started = time.monotonic()
    if not betas or not all(0 <= beta < math.inf for beta in betas):
        raise SettingError(f"betas must be one or more numbers >= 0; got {list(betas)}")
    betas = tuple(dict.fromkeys(betas))
    config, hypers = recipe(head)
    name, instance = (env, None) if isinstance(env, str) else (env.name, env)
    num_updates = config.num_updates if num_updates is None else num_updates
    config = dataclasses.replace(config, env=name, num_experts=num_experts, num_updates=num_updates)
    run = RunConfig(config, hypers, seeds, first_seed)

    def make(**changes):
        return make_task(dataclasses.replace(config, **changes), instance)

    uniform = make(observer="uniform")
    exact_task, mdp = None, uniform.world.mdp
    tasks = {"uniform": uniform, "greedy": make(observer=greedy_weights(mdp))}
    if mdp is not None:
        exact_task = make(observer="uniform", head="tabular")

    def steps():
        result = Sweep(
            env=name,
            head=config.head,
            num_experts=num_experts,
            horizon=uniform.world.horizon,
            seeds=seeds,
            num_updates=num_updates,
        )
        for observer, task in tasks.items():
            for point in _points(observer, task, exact_task, run, betas, progress):
                result = dataclasses.replace(
                    result,
                    points=(*result.points, point),
                    comparison=compare((*result.points, point)),
                    wall_seconds=time.monotonic() - started,
                )
                yield result

    return steps()


def compare(points: Sequence[SweepPoint]) -> tuple[Comparison, ...]:
    """The gap of sampled training beside the gap of exact training at the same PE return.

    The exact frontier is the line through the means of exact training over β. Points of sampled
    training that return more or less than all of the frontier are left out.
    """
    compared = []
    for observer in TEMPERATURES:
        own = [point for point in points if point.observer == observer]
        exact = [point for point in own if point.training == "exact"]
        if len(exact) < 2:
            continue
        frontier = sorted((point.pe_return.mean, point.clone_return.mean) for point in exact)
        pe_returns, clone_returns = zip(*frontier, strict=True)
        for point in own:
            pe_return = point.pe_return.mean
            if point.training == "exact" or not pe_returns[0] <= pe_return <= pe_returns[-1]:
                continue
            gap = pe_return - point.clone_return.mean
            exact_gap = pe_return - float(np.interp(pe_return, pe_returns, clone_returns))
            compared.append(
                Comparison(
                    observer=observer,
                    beta=point.beta,
                    pe_return=pe_return,
                    sampled_gap=gap,
                    exact_gap=exact_gap,
                    ratio=gap / exact_gap if exact_gap > 0 else None,
                )
            )
    return tuple(compared)


def _points(
    observer: str,
    task: Task,
    exact_task: Task | None,
    config: RunConfig,
    betas: Sequence[float],
    progress: ProgressFn,
) -> Iterator[SweepPoint]:
    """Train from samples, all β and seeds side by side; then by exact gradients, β after β."""
    train_keys = seed_keys(config.first_seed, config.seeds)
    keys = seed_keys(config.first_seed, config.seeds, EVALUATE)

    def point(training: str, beta: float, task: Task, heads: Params) -> SweepPoint:
        numbers = map(Interval.over_seeds, _measure(task, observer, heads, keys))
        names = ("pe_return", "worst_expert", "clone_return")
        measured = dict(zip(names, numbers, strict=True))
        return SweepPoint(observer=observer, training=training, beta=beta, **measured)

    shape = (len(betas), config.seeds)
    hypers = dataclasses.replace(config.hypers, temperature=TEMPERATURES[observer])
    hypers = jax.tree.map(lambda x: jnp.full(math.prod(shape), x), hypers)
    every_beta: Any = jnp.repeat(jnp.asarray(betas), config.seeds)
    hypers = dataclasses.replace(hypers, beta=every_beta)
    tiled = jnp.tile(train_keys, len(betas))
    state, _ = train(f"{observer}, sampled", task, tiled, hypers, progress, sweep=True)
    heads = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), state.params.heads)
    for index, beta in enumerate(betas):
        yield point("sampled", beta, task, jax.tree.map(lambda x, index=index: x[index], heads))
    if exact_task is None:
        return
    progress(Progress(f"{observer}, exact", 0, len(betas)))
    for index, beta in enumerate(betas):
        logits = _ascend(task, observer, train_keys, jnp.float32(beta))
        yield point("exact", beta, exact_task, as_tables(jax.nn.log_softmax(logits)))
        progress(Progress(f"{observer}, exact", index + 1, len(betas), f"beta {beta:g}"))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _ascend(
    task: Task, observer: str, keys: Key[Array, " K"], beta: Float[Array, ""]
) -> Float[Array, "K E S A"]:
    """Logits after ascending exact gradients, the seeds side by side."""
    mdp = task.world.mdp
    assert mdp is not None

    def one(key):
        return exact.train(
            key,
            mdp,
            beta,
            num_experts=task.config.num_experts,
            weights="uniform" if observer == "uniform" else "posterior",
            temperature=TEMPERATURES[observer],
        )

    return jax.vmap(one)(keys)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _measure(
    task: Task, observer: str, heads: Params, keys: Key[Array, " K"]
) -> tuple[Float[Array, " K"], Float[Array, " K"], Float[Array, " K"]]:
    """Returns [K] of each ensemble, of its worst expert, and of its clone."""

    def one(heads, key):
        key_experts, key_fit, key_clone = jax.random.split(key, 3)
        experts = returns.ensemble_returns(task, heads, key_experts).experts
        clone: Policy
        if observer == "uniform":
            clone = Mixture(task.networks, heads).fit(key_fit, None)
        else:
            clone = greedy(Posterior(task, heads).fit(key_fit, None))
        clone_return = returns.expected_return(task.world, clone, key_clone)
        return jnp.mean(experts), jnp.min(experts), clone_return

    return over_seeds(one, heads, keys)
