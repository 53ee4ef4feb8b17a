"""The host side of training: seeds side by side under ``vmap``, updates in jitted chunks."""

import dataclasses
import functools
import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Key

from ape_jax.algorithms import TrainState, init, updates
from ape_jax.algorithms.common import Metrics
from ape_jax.algorithms.task import Task
from ape_jax.config import CHUNK, Hypers
from ape_jax.training.devices import ENVIRONMENTS, SEEDS, make_mesh

log = logging.getLogger(__name__)


class Chunk(NamedTuple):
    """A run after some more updates: states [K, …] and metrics [K, updates of the chunk, …]."""

    num_done: int
    """Updates done so far."""
    num_updates: int
    """Updates of the whole run."""
    state: TrainState
    metrics: Metrics

    @property
    def first_update(self) -> int:
        """Number of the chunk's first update, from 0."""
        return self.num_done - self.metrics.pe_return.shape[1]


TRAIN, EVALUATE, DEMONSTRATE, RANDOM = range(4)
"""Purposes of a seed's keys: evaluation never draws from a training key."""


def seed_keys(first_seed: int, num_seeds: int, purpose: int = TRAIN) -> Key[Array, " K"]:
    """Make one key per seed; a seed gives the same run, however many are trained beside it."""
    return _seed_keys(first_seed, num_seeds, purpose)


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Runs a task for several seeds at once, over devices."""

    task: Task
    sweep: bool = False
    """Whether every seed has its own hyperparameters, which are then arrays [K]."""
    devices: Sequence[jax.Device] | None = None
    """Those that seeds and environments are spread over; if None, as many of all devices as divide
    them evenly."""

    def create(self, keys: Key[Array, " K"], hypers: Hypers) -> TrainState:
        """Make the states [K, …] before the first update, on one device."""
        mesh = make_mesh(self.task.config, len(keys), self.devices)
        return _here(_create(self.task, keys, hypers, mesh, self.sweep))

    def chunks(
        self,
        keys: Key[Array, " K"],
        hypers: Hypers,
        state: TrainState | None = None,
        num_done: int = 0,
        chunk: int = CHUNK,
    ) -> Iterator[Chunk]:
        """Train to the end, chunk by chunk; the last chunk holds the final state.

        Args:
          keys: one per seed, as ``seed_keys`` makes them.
          hypers: numbers, or arrays [K] of them in a sweep.
          state: the state [K, …] to resume from, on one device; None starts a new run.
          num_done: updates done before that state.
          chunk: largest number of updates in a chunk.

        Raises:
          SettingError: seeds or environments do not divide over the devices.
        """
        config = self.task.config
        mesh = make_mesh(config, len(keys), self.devices)
        size = f"{len(keys)} seed(s) x {config.num_experts} x {config.envs_per_expert} environments"
        kind = mesh.devices.flat[0].device_kind
        log.info("%s: %s on %d x %s", config.env, size, mesh.size, kind)
        if state is None:
            state = _create(self.task, keys, hypers, mesh, self.sweep)
        else:  # On the devices where a new run starts, so that the compiled program is the same.
            state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
        num_updates = config.num_updates
        while num_done < num_updates:
            count = min(chunk, num_updates - num_done)
            state, metrics = jax.block_until_ready(
                advance(self.task, state, hypers, count, mesh, self.sweep)
            )
            num_done += count
            yield Chunk(num_done, num_updates, *_here((state, metrics)))


@functools.partial(jax.jit, static_argnames="num_seeds")
def _seed_keys(first_seed, num_seeds, purpose):
    seeds = first_seed + jnp.arange(num_seeds)
    return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), purpose))(seeds)


@functools.partial(jax.jit, static_argnames=("task", "mesh", "sweep"))
def _create(task, keys, hypers, mesh, sweep) -> TrainState:
    states = jax.vmap(init, (0, None, 0 if sweep else None))(keys, task, hypers)
    return _on_every_device(states, mesh)


# The state is not donated: it is small, and it is still being saved when the next chunk starts.
@functools.partial(jax.jit, static_argnames=("task", "num_updates", "mesh", "sweep"))
def advance(task, state, hypers, num_updates, mesh, sweep) -> tuple[TrainState, Metrics]:
    """Do several updates of every seed, with the work spread over the devices of a mesh."""
    axis_name = ENVIRONMENTS if mesh.shape[ENVIRONMENTS] > 1 else None

    def train_seed(state, hypers):
        return updates(task, state, hypers, num_updates, axis_name)

    spread = jax.shard_map(
        jax.vmap(train_seed, (0, 0 if sweep else None)),
        mesh=mesh,
        in_specs=(PartitionSpec(SEEDS), PartitionSpec(SEEDS) if sweep else PartitionSpec()),
        out_specs=PartitionSpec(SEEDS),
        check_vma=False,  # Environments start their loops with constants, equal on all devices.
    )
    return _on_every_device(spread(state, hypers), mesh)


def _here(tree):
    """Take one device's copy of arrays that every device holds."""
    return jax.tree.map(lambda x: x.addressable_data(0), tree)


def _on_every_device(tree, mesh: Mesh):
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))
