"""The host side of training: seeds vmapped, updates in jitted chunks, progress between them."""

import logging
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ape_jax.config import Hypers
from ape_jax.learner import Metrics, Task, TrainState, create_state, updates

log = logging.getLogger(__name__)

CHUNK = 50
"""Updates between two looks from the host."""


class Chunk(NamedTuple):
    """The run after some more updates."""

    num_done: int
    """Updates done so far."""
    num_updates: int
    """Updates of the whole run."""
    state: TrainState
    """[K, …]."""
    metrics: Metrics
    """[K, updates of this chunk, …]."""


TRAIN, EVALUATE, DEMONSTRATE = 0, 1, 2
"""Purposes of a seed's keys; no evaluation ever draws from a training key."""


def seed_keys(first_seed: int, num_seeds: int, purpose: int = TRAIN) -> Key[Array, " K"]:
    """One key a seed; a seed means the same run however many are trained beside it."""
    seeds = jnp.arange(first_seed, first_seed + num_seeds)
    return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), purpose))(seeds)


class Runner:
    """Runs a task for several seeds at once. Compiled programs are kept between calls."""

    def __init__(self, task: Task, sweep: bool = False):
        """Compile nothing yet.

        Args:
          task: what is trained.
          sweep: whether every seed has its own hyperparameters, arrays [K], or all share theirs.
        """
        self.task = task
        own = 0 if sweep else None
        self._create = jax.jit(jax.vmap(create_state, (0, None, own)), static_argnums=1)
        self._updates = jax.jit(jax.vmap(updates, (None, 0, own, None)), static_argnums=(0, 3))

    def create(self, keys: Key[Array, " K"], hypers: Hypers) -> TrainState:
        """Fresh states [K, …]."""
        return self._create(keys, self.task.networks, hypers)

    def run(self, keys: Key[Array, " K"], hypers: Hypers) -> Iterator[Chunk]:
        """Train to the end, chunk by chunk; the last chunk carries the final state."""
        config = self.task.config
        log.info(
            "%s: %d seed(s) x %d expert(s) x %d environments on %s",
            config.env,
            len(keys),
            config.num_experts,
            config.envs_per_expert,
            jax.devices()[0].device_kind,
        )
        state = self.create(keys, hypers)
        num_updates = config.num_updates
        for num_done in range(0, num_updates, CHUNK):
            count = min(CHUNK, num_updates - num_done)
            state, metrics = jax.block_until_ready(self._updates(self.task, state, hypers, count))
            yield Chunk(num_done + count, num_updates, state, metrics)


def progress_bar(console: Console) -> Progress:
    """A bar with counts, the current returns, and times."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[returns]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def describe_returns(metrics: Metrics) -> str:
    """The newest returns, averaged over seeds, for the progress bar."""
    pe_return = jnp.mean(metrics.pe_return[:, -1])
    observer_return = jnp.mean(metrics.observer_return[:, -1])
    return f"PE {pe_return:.2f}  observer {observer_return:.2f}"
