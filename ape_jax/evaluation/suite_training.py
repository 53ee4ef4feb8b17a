"""The trainings of the suite: a preset, and its controls at the same price."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from ape_jax.algorithms.task import Task, make_task
from ape_jax.config import Hypers, RunConfig, TrainConfig
from ape_jax.evaluation import kept
from ape_jax.evaluation.defences import pe_returns
from ape_jax.evaluation.progress import Progress, train
from ape_jax.training.trainer import seed_keys
from ape_jax.types import Params

VARIANTS = ("ensemble", "beta0", "single")
"""The trainings of a row: the preset, the same without an observer, the same with one expert."""

CONTROL_BETAS = (0.5, 1.0, 2.0)
"""Multiples of the preset's β that the control with one expert is trained with."""


def variant(name: str, config: TrainConfig, hypers: Hypers) -> tuple[TrainConfig, Hypers]:
    """Settings of one of the ``VARIANTS``."""
    if name == "beta0":
        hypers = dataclasses.replace(hypers, beta=0.0, min_return=None)
        config = config.without_observer()
    if name == "single":
        config = dataclasses.replace(config, num_experts=1, observer="uniform")
    return config, hypers


def train_seeds(
    name: str,
    task: Task,
    keys: Key[Array, " K"],
    hypers: Hypers,
    report: Callable[[str], None],
    sweep: bool = False,
) -> Params:
    """Train one ensemble for each key, and report in words how far the training of this name is.

    In a sweep every key has its own hyperparameters, which are then arrays [K].

    Seeds are trained side by side. Only where observations are images they are trained one after
    the other: the images of all seeds at once take gigabytes, and more time.

    Returns:
      Heads [K, E, …].

    Raises:
      NonFiniteError: losses or parameters are not finite any more.
    """
    together = 1 if task.config.head == "conv" else len(keys)
    heads = []
    for first in range(0, len(keys), together):
        which = f"seed {first + 1}/{len(keys)}" if together == 1 else f"{len(keys)} seeds"

        def trained(progress: Progress, which=which) -> None:
            report(f"{name} {progress.done}/{task.config.num_updates}, {which}")

        part = slice(first, first + together)
        own = jax.tree.map(lambda x, part=part: x[part], hypers) if sweep else hypers
        state, _ = train(which, task, keys[part], own, trained, sweep)
        heads.append(state.params.heads)
    return jax.tree.map(lambda *x: jnp.concatenate(x), *heads)


def train_variant(
    which: str,
    name: str,
    config: RunConfig,
    report: Callable[[str], None],
    keep: Path | None = None,
) -> tuple[Task, Params]:
    """The task of one of the ``VARIANTS``, and its heads [K, E, …], kept or trained.

    With one expert there are as many ensembles for each seed as ``CONTROL_BETAS``: [3 K, 1, …], all
    β of one seed together.
    """
    settings, hypers = variant(which, config.train, config.hypers)
    task, keys = make_task(settings), seed_keys(config.first_seed, config.seeds)
    run = dataclasses.replace(config, train=settings, hypers=hypers)
    record = {"preset": name, "variant": which, **run.to_flat()}
    if which == "single":
        record["betas"] = [beta * hypers.beta for beta in CONTROL_BETAS]
    path = None if keep is None else keep / f"{name}-{which}.safetensors"
    heads = None if path is None else kept.load(path, task, record)
    if heads is not None:
        return task, heads
    sweep = which == "single"
    if sweep:
        betas = jnp.tile(jnp.asarray(CONTROL_BETAS) * hypers.beta, config.seeds)
        keys = jnp.repeat(keys, len(CONTROL_BETAS))
        hypers = jax.tree.map(lambda x: jnp.full(len(keys), x, jnp.float32), hypers)
        hypers = dataclasses.replace(hypers, beta=betas)
    heads = train_seeds(which, task, keys, hypers, report, sweep)
    if path is not None:
        kept.save(path, task, record, heads)
    return task, heads


def at_price(
    task: Task, heads: Params, keys: Key[Array, " K"], pe_return: float
) -> tuple[int, Params]:
    """The index in ``CONTROL_BETAS`` whose mean return is closest, and its heads [K, 1, …]."""
    count = len(CONTROL_BETAS)
    reached = pe_returns(task, heads, jnp.repeat(keys, count)).reshape(-1, count)
    chosen = int(jnp.argmin(jnp.abs(jnp.mean(reached, axis=0) - pe_return)))
    return chosen, jax.tree.map(lambda x: x[chosen::count], heads)
