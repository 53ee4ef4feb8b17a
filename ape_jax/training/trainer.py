"""The host side of training: seeds vmapped, updates in jitted chunks, progress between them."""

import functools
import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import checkify
from jax.sharding import Mesh, NamedSharding, PartitionSpec
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

from ape_jax.algorithms import TrainState, init, spreads_environments, updates
from ape_jax.algorithms.common import Metrics
from ape_jax.algorithms.task import Task
from ape_jax.config import CHUNK, Hypers, TrainConfig
from ape_jax.training.devices import ENVIRONMENTS, SEEDS, make_mesh
from ape_jax.types import NonFiniteError, SettingError

log = logging.getLogger(__name__)


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


TRAIN, EVALUATE, DEMONSTRATE, RANDOM = range(4)
"""Purposes of a seed's keys; no evaluation ever draws from a training key."""


def seed_keys(first_seed: int, num_seeds: int, purpose: int = TRAIN) -> Key[Array, " K"]:
    """One key a seed; a seed means the same run however many are trained beside it."""
    seeds = jnp.arange(first_seed, first_seed + num_seeds)
    return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), purpose))(seeds)


class Trainer:
    """Runs a task for several seeds at once, over devices."""

    def __init__(
        self,
        task: Task,
        sweep: bool = False,
        devices: Sequence[jax.Device] | None = None,
        debug_nans: bool = False,
    ):
        """Compile nothing yet.

        Args:
          task: what is trained.
          sweep: whether every seed has its own hyperparameters, arrays [K], or all share theirs.
          devices: over which seeds and environments are spread; if None as many of all as divide
            them evenly.
          debug_nans: whether every operation is checked for NaNs; on one device.
        """
        self.task = task
        self.sweep = sweep
        self.devices = devices
        self.debug_nans = debug_nans

    def create(self, keys: Key[Array, " K"], hypers: Hypers) -> TrainState:
        """Fresh states [K, …], on one device."""
        return _here(self._create(keys, hypers))

    def _create(self, keys: Key[Array, " K"], hypers: Hypers) -> TrainState:
        return _create(self.task, keys, hypers, self._mesh(keys), self.sweep)

    def chunks(
        self,
        keys: Key[Array, " K"],
        hypers: Hypers,
        state: TrainState | None = None,
        num_done: int = 0,
        chunk: int = CHUNK,
    ) -> Iterator[Chunk]:
        """Train to the end, chunk by chunk; the last chunk carries the final state.

        Args:
          keys: one a seed.
          hypers: numbers, or arrays [K] of them.
          state: where to go on from, [K, …] on one device; None begins.
          num_done: updates behind that state.
          chunk: updates between two looks from the host.

        Raises:
          SettingError: environments that do not divide over the devices.
          NonFiniteError: with ``debug_nans``, which operation makes a NaN, and at which update.
        """
        config = self.task.config
        mesh = self._mesh(keys)
        if self.debug_nans:
            chunk = 1
        log.info(
            "%s: %d seed(s) x %d expert(s) x %d environments on %d x %s",
            config.env,
            len(keys),
            config.num_experts,
            config.envs_per_expert,
            mesh.size,
            mesh.devices.flat[0].device_kind,
        )
        if state is None:
            state = self._create(keys, hypers)
        else:  # To where the first chunk of a new run begins, so that it is the same program.
            state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
        num_updates = config.num_updates
        while num_done < num_updates:
            count = min(chunk, num_updates - num_done)
            if self.debug_nans:
                error, (state, metrics) = _advance_checked(self.task, state, hypers, self.sweep)
                if error.get():
                    raise NonFiniteError(f"{error.get()} (update {num_done})")
            else:
                state, metrics = jax.block_until_ready(
                    _advance(self.task, state, hypers, count, mesh, self.sweep)
                )
            num_done += count
            yield Chunk(num_done, num_updates, *_here((state, metrics)))

    def _mesh(self, keys: Key[Array, " K"]) -> Mesh:
        return mesh_of(self.task.config, len(keys), self.devices)


def mesh_of(
    config: TrainConfig, num_seeds: int, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """The devices of a run: seeds are spread, and with pg also the environments of a seed.

    Raises:
      SettingError: they do not divide over the devices asked for.
    """
    if spreads_environments(config):
        return make_mesh(num_seeds, config.envs_per_expert, devices)
    # Environments of ppo go on from update to update, on the device of their seed.
    if devices is not None and num_seeds % len(devices):
        raise SettingError(
            f"seeds must be divisible by the {len(devices)} devices with algorithm=ppo, which "
            f"spreads seeds alone; got {num_seeds}. Choose another number of either"
        )
    return make_mesh(num_seeds, 1, devices)


@functools.partial(jax.jit, static_argnames=("task", "mesh", "sweep"))
def _create(task, keys, hypers, mesh, sweep) -> TrainState:
    states = jax.vmap(init, (0, None, 0 if sweep else None))(keys, task, hypers)
    return _on_every_device(states, mesh)


# The state is not donated: it is small, and has to outlive an update that is interrupted.
@functools.partial(jax.jit, static_argnames=("task", "num_updates", "mesh", "sweep"))
def _advance(task, state, hypers, num_updates, mesh, sweep) -> tuple[TrainState, Metrics]:
    axis_name = ENVIRONMENTS if mesh.shape[ENVIRONMENTS] > 1 else None

    def of_seed(state, hypers):
        return updates(task, state, hypers, num_updates, axis_name)

    spread = jax.shard_map(
        jax.vmap(of_seed, (0, 0 if sweep else None)),
        mesh=mesh,
        in_specs=(PartitionSpec(SEEDS), PartitionSpec(SEEDS) if sweep else PartitionSpec()),
        out_specs=PartitionSpec(SEEDS),
        check_vma=False,  # Environments begin their loops with constants, alike everywhere.
    )
    return _on_every_device(spread(state, hypers), mesh)


@functools.partial(jax.jit, static_argnames=("task", "sweep"))
def _advance_checked(task, state, hypers, sweep):
    """One update, and the first operation of it that made a NaN."""

    def of_seed(state, hypers):
        return updates(task, state, hypers, 1)

    each = jax.vmap(of_seed, (0, 0 if sweep else None))
    return checkify.checkify(each, errors=checkify.nan_checks)(state, hypers)


def _here(tree):
    """One device's copy of what every device holds."""
    return jax.tree.map(lambda x: x.addressable_data(0), tree)


def _on_every_device(tree, mesh: Mesh):
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


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
    worst = jnp.mean(jnp.min(metrics.expert_returns[:, -1], axis=-1))
    text = f"PE {pe_return:.2f}  worst expert {worst:.2f}"
    observer_return = jnp.mean(metrics.observer_return[:, -1])
    return text if jnp.isnan(observer_return) else f"{text}  observer {observer_return:.2f}"
