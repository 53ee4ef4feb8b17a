"""The programs that are compiled, traced in the forms of the platform that they are for."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ape_jax import algorithms, presets
from ape_jax.algorithms import exact
from ape_jax.algorithms.task import make_task
from ape_jax.config import CHUNK, Hypers, PGConfig, PGHypers, TrainConfig
from ape_jax.core import platform
from ape_jax.evaluation.sweep import BETAS
from ape_jax.training import trainer
from ape_jax.training.devices import make_mesh
from benchmarks.aot.targets import Target

EXACT_UPDATES = 100
SWEEP_SEEDS = 4
SHARDED = PGConfig(envs_per_expert=1024)


class Traced(NamedTuple):
    """A program that is ready to be compiled."""

    lowered: jax.stages.Lowered
    num_updates: int
    """Updates in one run of it."""


Trace = Callable[[Sequence[jax.Device], str], Traced]
"""Traces and lowers a program for devices of a platform."""


def trace(name: str, target: Target) -> Traced:
    """Trace and lower a program of ``PROGRAMS`` or ``SHARDED_PROGRAMS``."""
    with platform.tracing_for(target.platform):
        lowering = "cuda" if target.platform == "gpu" else "tpu"
        return (PROGRAMS | SHARDED_PROGRAMS)[name](target.devices(), lowering)


def _lower(
    function: Callable, arguments: Callable, devices, lowering: str, donate: bool = True
) -> jax.stages.Lowered:
    """Lower a function of what another one returns, for one device.

    Its first argument, the state, is donated, because the trainer's loop over updates carries it in
    place as well.
    """
    one = NamedSharding(Mesh(np.array(devices[:1]), ("device",)), PartitionSpec())
    donated = (0,) if donate else ()
    jitted = jax.jit(function, in_shardings=one, out_shardings=one, donate_argnums=donated)
    return jitted.trace(*jax.eval_shape(arguments)).lower(lowering_platforms=(lowering,))


def _update(config: TrainConfig, hypers: Hypers) -> Trace:
    """One update of one seed."""

    def lower(devices, lowering) -> Traced:
        task = make_task(config)

        def start():
            return algorithms.init(jax.random.key(0), task, hypers), hypers

        def update(state, hypers):
            return algorithms.update(task, state, hypers)

        return Traced(_lower(update, start, devices, lowering), 1)

    return lower


def _sweep(devices, lowering) -> Traced:
    """One update of every seed at every β, side by side."""
    task = make_task(PGConfig())

    def start():
        size = len(BETAS) * SWEEP_SEEDS
        keys = jax.random.split(jax.random.key(0), size)
        hypers = jax.tree.map(lambda x: jnp.full(size, x), PGHypers())
        return jax.vmap(algorithms.init, (0, None, 0))(keys, task, hypers), hypers

    def update(state, hypers):
        return jax.vmap(algorithms.update, (None, 0, 0))(task, state, hypers)

    return Traced(_lower(update, start, devices, lowering), 1)


def _exact(devices, lowering) -> Traced:
    """A run of exact training, which starts from logits that it draws itself."""
    mdp = make_task(PGConfig()).world.mdp
    assert mdp is not None

    def start():
        return jax.random.key(0), jnp.float32(BETAS[-1])

    def train(key, beta):
        return exact.train(key, mdp, beta, num_updates=EXACT_UPDATES)

    return Traced(_lower(train, start, devices, lowering, donate=False), EXACT_UPDATES)


def _sharded(over: str) -> Trace:
    """A chunk of updates as the trainer runs it, one seed a chip or one seed on all of them."""

    def lower(devices, lowering) -> Traced:
        task, hypers = make_task(SHARDED), PGHypers()
        num_seeds = len(devices) if over == "seeds" else 1
        mesh = make_mesh(SHARDED, num_seeds, devices)

        def start():
            keys = jax.random.split(jax.random.key(0), num_seeds)
            return jax.vmap(algorithms.init, (0, None, None))(keys, task, hypers)

        everywhere = NamedSharding(mesh, PartitionSpec())
        state = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
            jax.eval_shape(start),
        )
        traced = trainer.advance.trace(task, state, hypers, CHUNK, mesh, False)
        return Traced(traced.lower(lowering_platforms=(lowering,)), CHUNK)

    return lower


def _pg(head: str, block: int, experts: int) -> Trace:
    # The head is one of the names that the config checks.
    config = PGConfig(head=head, envs_per_expert=block, num_experts=experts)  # type: ignore[arg-type]
    return _update(config, PGHypers())


def _preset(name: str) -> Trace:
    run = presets.config(name)
    return _update(run.train, run.hypers)


def _with_pallas(program: Trace) -> Trace:
    """The program with the kernels of ``envs.tables_kernel``, which no platform uses unasked."""

    def lower(devices, lowering) -> Traced:
        with platform.tracing_for(platform.forms()._replace(pallas=True)):
            return program(devices, lowering)

    return lower


PROGRAMS: dict[str, Trace] = {
    f"pg-{head}-{block}{'-e8' if experts == 8 else ''}": _pg(head, block, experts)
    for experts in (2, 8)
    for head in ("tabular", "mlp")
    for block in (64, 1024, 16384)
}
PROGRAMS |= {f"ppo-{name}": _preset(name) for name in ("cartpole", "catch", "breakout")}
PROGRAMS |= {"exact": _exact, "sweep": _sweep}
PROGRAMS |= {
    f"{name}-pallas": _with_pallas(PROGRAMS[name])
    for name in ("pg-tabular-64", "pg-tabular-1024", "pg-tabular-16384", "pg-mlp-1024")
}
"""Programs for one chip. E = 2, or 8 where the name says so; ppo is that of the presets."""

SHARDED_PROGRAMS = {f"pg-tabular-1024-{over}-sharded": _sharded(over) for over in ("seeds", "envs")}
"""Programs for several chips."""
