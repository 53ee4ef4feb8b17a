"""Shapes are checked at run time, and fixtures share small worlds and what is compiled for them."""

import contextlib
import io
import os
import sys
from importlib.metadata import version
from pathlib import Path

import jaxtyping

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiled once for all workers, for the commands that tests start, and for the next run of tests.
# A folder to delete should a worker ever be killed while it writes there.
_compiled = Path(__file__).parents[1] / ".pytest_cache" / "compiled"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_compiled))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# Programs run once or twice here, and XLA's plainer code is compiled in a third of the time. A flag
# that a version does not know would end the process; XLA_FLAGS= tests what users run.
if version("jaxlib").startswith("0.10."):
    os.environ.setdefault(
        "XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=1"
    )

# The benchmarks are no part of the package; last, so that an installed package comes first.
sys.path.append(str(Path(__file__).parents[1]))

_hook = jaxtyping.install_import_hook("ape_jax", "beartype.beartype")
_hook.__enter__()

import command_line  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import matplotlib  # noqa: E402
import pytest  # noqa: E402

from ape_jax.algorithms.task import Task, make_task  # noqa: E402
from ape_jax.config import Hypers, PGConfig, PGHypers  # noqa: E402
from ape_jax.core.tabular import FiniteMDP  # noqa: E402
from ape_jax.demonstrations.collect import collect  # noqa: E402
from ape_jax.envs import GridWorld  # noqa: E402
from ape_jax.evaluation import measure  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
matplotlib.use("Agg")


@pytest.fixture(scope="module", autouse=True)
def room_for_programs():
    """Let go of what a file compiled: programs take memory maps, and Linux allows 65,530."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def small_grid() -> GridWorld:
    """Nine cells and a limit that binds now and then."""
    return GridWorld(size=3, goal=(0, 1), horizon=8)


@pytest.fixture(scope="session")
def small_mdp(small_grid) -> FiniteMDP:
    return small_grid.finite_mdp()


@pytest.fixture(scope="session")
def small_task(small_grid) -> Task:
    return make_task(PGConfig(envs_per_expert=16, num_updates=6), small_grid)


@pytest.fixture(scope="session")
def small_run(tmp_path_factory) -> Path:
    """A finished run of two seeds, by the command line."""
    out = tmp_path_factory.mktemp("run") / "run"
    settings = ["--num-updates", "4", "--envs-per-expert", "4", "--seeds", "2", "--first-seed", "3"]
    assert command_line.run("train", *settings, "--out", out) == 0
    return out


@pytest.fixture(scope="session")
def small_audit(small_run, tmp_path_factory) -> Path:
    """An audit of that run and of a defence, apart from its default place."""
    out = tmp_path_factory.mktemp("audit")
    flags = ["--quick", "--observers", "mixture,behaviour_cloning,limited,mean_action"]
    flags += ["--defences", "single_optimal", "--steps", "2000"]
    assert command_line.run("audit", small_run, *flags, "--out", out) == 0
    return out


@pytest.fixture(scope="session")
def hypers() -> Hypers:
    return PGHypers()


@pytest.fixture(scope="session")
def collected(small_task):
    """300 steps on the small grid, and the expert that acted in each."""
    heads = small_task.networks.init(jax.random.key(0)).heads
    sample = jax.jit(collect, static_argnums=(1, 3))
    return sample(jax.random.key(1), small_task, heads, 300)


@pytest.fixture(scope="session")
def pg_run(tmp_path_factory) -> Path:
    """A finished run, and beside it what it printed. No test changes it."""
    from command_line import PG, run

    out = tmp_path_factory.mktemp("trained") / "pg"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert run("train", *PG, "--out", out) == 0
    out.with_suffix(".txt").write_text(" ".join(printed.getvalue().split()))
    return out


@pytest.fixture(scope="session")
def ppo_run(tmp_path_factory) -> Path:
    """A finished run with curves for TensorBoard. No test changes it."""
    from command_line import PPO, run

    out = tmp_path_factory.mktemp("trained") / "ppo"
    assert run("train", *PPO, "--tensorboard", "--out", out) == 0
    return out


@pytest.fixture(scope="session")
def random_policies(small_mdp):
    """Three random policies [E, S, A] on the small grid."""
    shape = (3, small_mdp.num_states, small_mdp.num_actions)
    return jax.nn.softmax(jax.random.normal(jax.random.key(7), shape))


def random_mdp(seed: int, num_states: int = 5, num_actions: int = 3, horizon: int = 6) -> FiniteMDP:
    """A random process with one terminal state and rewards of both signs."""
    keys = jax.random.split(jax.random.key(seed), 3)
    transition = jax.nn.softmax(
        2.0 * jax.random.normal(keys[0], (num_states, num_actions, num_states))
    )
    terminal = jnp.arange(num_states) == 0
    start = jnp.where(terminal, 0.0, jax.random.uniform(keys[2], (num_states,)))
    return FiniteMDP(
        transition=transition,
        reward=jax.random.normal(keys[1], (num_states, num_actions)),
        start=start / jnp.sum(start),
        terminal=terminal,
        horizon=horizon,
    )


@pytest.fixture(scope="module")
def two_seeds(small_task):
    """Heads [2, E, S, A] of two random ensembles on the small grid, and their demonstrations."""
    keys = jax.random.split(jax.random.key(4), 2)
    heads = jax.vmap(lambda key: small_task.networks.init(key).heads)(keys)
    heads = jax.tree.map(lambda x: 1.5 * x, heads)
    shown = measure.demonstrate(small_task, keys, heads, 20_000)
    held_out = measure.demonstrate(small_task, jax.random.split(keys[0], 2), heads, 3_000)
    return keys, heads, shown, held_out
