"""The frontier over β: the experts' return against what is left to the clone."""

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from gymnax.environments.environment import Environment
from jaxtyping import Array, Float, Key

from ape_jax.algorithms import exact
from ape_jax.algorithms.task import Task, make_task
from ape_jax.config import Hypers, RunConfig, recipe
from ape_jax.envs import GRIDWORLD
from ape_jax.evaluation import returns
from ape_jax.evaluation.defences import GREEDY_TEMPERATURE, as_tables, greedy_weights
from ape_jax.evaluation.intervals import Interval
from ape_jax.evaluation.records import Progress, ProgressFn, ignore_progress
from ape_jax.evaluation.sweep_records import OBSERVERS, Sweep, SweepPoint, compare
from ape_jax.observers import Mixture, Posterior
from ape_jax.training import guards
from ape_jax.training.trainer import EVALUATE, Trainer, seed_keys
from ape_jax.types import HeadName, Params, Policy, SettingError

BETAS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)
"""Weights of the observer's return that are swept over by default."""


def sweep(
    betas: Sequence[float] = BETAS,
    env: str | Environment = GRIDWORLD,
    head: HeadName = "tabular",
    num_experts: int = 2,
    num_updates: int | None = None,
    seeds: int = 5,
    first_seed: int = 0,
    progress: ProgressFn = ignore_progress,
    on_step: Callable[[Sweep], None] = lambda result: None,
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
      on_step: called with what is known so far: first with a sweep without points, when all
        settings are checked; then after each point.

    Raises:
      SettingError: a setting breaks a rule.
      NonFiniteError: losses or parameters of sampled training are not finite any more.

    >>> import ape_jax
    >>> grid = ape_jax.envs.GridWorld(size=3, goal=(0, 1), horizon=8)
    >>> result = ape_jax.sweep(betas=[0.3], env=grid, num_updates=2, seeds=1)
    >>> [(point.observer, point.training) for point in result.points]
    [('uniform', 'sampled'), ('uniform', 'exact'), ('greedy', 'sampled'), ('greedy', 'exact')]
    """
    started = time.monotonic()
    if not betas or not all(0 <= beta < math.inf for beta in betas):
        raise SettingError(f"betas must be one or more numbers >= 0; got {list(betas)}")
    betas = tuple(dict.fromkeys(betas))
    config, hypers = recipe(head)
    name, instance = (env, None) if isinstance(env, str) else (env.name, env)
    num_updates = config.num_updates if num_updates is None else num_updates
    config = dataclasses.replace(config, env=name, num_experts=num_experts, num_updates=num_updates)
    RunConfig(config, hypers, seeds, first_seed)  # Checks the seeds.
    mdp = make_task(dataclasses.replace(config, observer="uniform"), instance).world.mdp
    weights = {"uniform": "uniform", "greedy": greedy_weights(mdp)}
    tasks = {
        observer: make_task(dataclasses.replace(config, observer=weights[observer]), instance)
        for observer in OBSERVERS
    }
    result = Sweep(
        env=name,
        head=config.head,
        num_experts=num_experts,
        horizon=tasks["uniform"].world.horizon,
        seeds=seeds,
        num_updates=num_updates,
    )
    on_step(result)
    for observer, task in tasks.items():
        train_keys = seed_keys(first_seed, seeds)
        keys = seed_keys(first_seed, seeds, EVALUATE)
        grid = _Grid(task, observer, betas, train_keys, keys)
        points = _sampled(grid, hypers, progress)
        if mdp is not None:
            exact_task = make_task(dataclasses.replace(task.config, head="tabular"), instance)
            points = itertools.chain(points, _exact(grid, exact_task, progress))
        for point in points:
            found = (*result.points, point)
            result = dataclasses.replace(
                result,
                points=found,
                comparison=compare(found),
                wall_seconds=time.monotonic() - started,
            )
            on_step(result)
    return result


class _Grid(NamedTuple):
    """What is trained against one observer."""

    task: Task
    observer: str
    betas: tuple[float, ...]
    train_keys: Key[Array, " K"]
    keys: Key[Array, " K"]


class _Returns(NamedTuple):
    """Returns of ensembles [K]."""

    pe: Float[Array, "..."]
    worst_expert: Float[Array, "..."]
    clone: Float[Array, "..."]


def _point(grid: _Grid, training: str, beta: float, task: Task, heads: Params) -> SweepPoint:
    found = _measure(task, grid.observer, heads, grid.keys)
    return SweepPoint(
        observer=grid.observer,
        training=training,
        beta=beta,
        pe_return=Interval.bootstrap(found.pe),
        worst_expert=Interval.bootstrap(found.worst_expert),
        clone_return=Interval.bootstrap(found.clone),
    )


def _sampled(grid: _Grid, hypers: Hypers, progress: ProgressFn) -> Iterator[SweepPoint]:
    """Train from samples, all β and seeds side by side."""
    shape = (len(grid.betas), len(grid.keys))
    hypers = dataclasses.replace(hypers, temperature=_temperature(grid.observer))
    hypers = jax.tree.map(lambda x: jnp.full(math.prod(shape), x), hypers)
    betas: Any = jnp.repeat(jnp.asarray(grid.betas), shape[1])
    hypers = dataclasses.replace(hypers, beta=betas)
    keys = jnp.tile(grid.train_keys, shape[0])
    name, num_done = f"{grid.observer}, sampled", 0
    progress(Progress(name, 0, None, "compiling"))
    for chunk in Trainer(grid.task, sweep=True).chunks(keys, hypers):
        guards.check(chunk.metrics, chunk.state, num_done)
        num_done = chunk.num_done
        progress(Progress(name, num_done, chunk.num_updates, metrics=chunk.metrics))
    heads = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), chunk.state.params.heads)
    for index, beta in enumerate(grid.betas):
        own = jax.tree.map(lambda x, index=index: x[index], heads)
        yield _point(grid, "sampled", beta, grid.task, own)


def _exact(grid: _Grid, exact_task: Task, progress: ProgressFn) -> Iterator[SweepPoint]:
    """Ascend exact gradients, the seeds of one β side by side."""
    name = f"{grid.observer}, exact"
    progress(Progress(name, 0, len(grid.betas)))
    for index, beta in enumerate(grid.betas):
        logits = _ascend(grid.task, grid.observer, grid.train_keys, jnp.float32(beta))
        heads = as_tables(jax.nn.log_softmax(logits))
        yield _point(grid, "exact", beta, exact_task, heads)
        progress(Progress(name, index + 1, len(grid.betas), f"beta {beta:g}"))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _ascend(
    task: Task, observer: str, keys: Key[Array, " K"], beta: Float[Array, ""]
) -> Float[Array, "K E S A"]:
    mdp = task.world.mdp
    assert mdp is not None

    def one(key):
        return exact.train(
            key,
            mdp,
            beta,
            num_experts=task.config.num_experts,
            weights="uniform" if observer == "uniform" else "posterior",
            temperature=_temperature(observer),
        )

    return jax.vmap(one)(keys)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _measure(task: Task, observer: str, heads: Params, keys: Key[Array, " K"]) -> _Returns:
    def one(heads, key):
        key_experts, key_fit, key_clone = jax.random.split(key, 3)
        experts = returns.ensemble_returns(task, heads, key_experts).experts
        clone: Policy
        if observer == "uniform":
            clone = Mixture(task.networks, heads).fit(key_fit, None)
        else:
            clone = returns.greedy(Posterior(task, heads).fit(key_fit, None))
        clone_return = returns.expected_return(task.world, clone, key_clone)
        return _Returns(jnp.mean(experts), jnp.min(experts), clone_return)

    return jax.lax.map(lambda both: one(*both), (heads, keys), batch_size=10)


def _temperature(observer: str) -> float:
    return GREEDY_TEMPERATURE if observer == "greedy" else 1.0
