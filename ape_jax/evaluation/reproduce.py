"""The paper's Table 1 on the gridworld, with the observers that the paper left out."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ape_jax.algorithms import TrainState, update
from ape_jax.algorithms.common import Metrics
from ape_jax.algorithms.task import Task, make_task
from ape_jax.config import Hypers, PGConfig, PGHypers, RunConfig, recipe
from ape_jax.core import tabular
from ape_jax.demonstrations import collect
from ape_jax.evaluation import returns
from ape_jax.evaluation.intervals import MeanStd
from ape_jax.evaluation.records import Progress, ProgressFn, ignore_progress
from ape_jax.networks import make_networks
from ape_jax.observers import BehaviourCloning, Observer, TabularCloning
from ape_jax.training.trainer import EVALUATE, Trainer, seed_keys
from ape_jax.types import Params, PRNGKey

LABELS = {
    "optimal": "optimal PE",
    "near_optimal": "near-optimal PE",
    "random": "random PE",
    "pg_ape": "PG-APE",
    "greedy_ape": "greedy-APE",
    "greedy_ape_single": "greedy-APE, 1 expert",
}
"""Row names and what people call them, in the order of the table."""

PAPER = {"pg_ape": {"pe_return": -16.33, "clone_return": -44.14}}
"""The paper's Table 1. Training of its other two ensembles is halted where they return what these
experts, or this clone, return; so they hold no further result."""


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much to compute."""

    seeds: int = 10
    """Ensembles of each kind."""
    first_seed: int = 0
    """Number of the first seed."""
    max_updates: int = 3000
    """No row trains longer than this, or than its own number of updates."""
    num_demonstrations: int = 1_000_000
    """Demonstration steps, pooled over the experts."""


QUICK = Scale(seeds=3, max_updates=400, num_demonstrations=100_000)
"""A first look."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table1Row:
    """Undiscounted returns of one kind of ensemble and of its clones, all of them exact."""

    name: str
    """One of ``LABELS``."""
    num_updates: tuple[int, ...]
    """Updates of each seed; fewer than configured for the rows that are halted."""
    pe_return: MeanStd
    """Return of the ensemble: the experts' mean."""
    expert_returns: tuple[tuple[float, ...], ...]
    """Returns of the experts, which sample their actions [K, E]."""
    greedy_experts: MeanStd
    """Mean over the experts, each deployed greedily itself."""
    mixture: MeanStd
    """Return of the uniform mixture π_o, which samples."""
    bc_sampled: MeanStd
    """Return of behaviour cloning, which samples."""
    bc_greedy: MeanStd
    """Return of behaviour cloning, deployed greedily."""
    floor: MeanStd
    """Least return of the ideal sampling cloner."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table1:
    """The content of ``table1.json``."""

    seeds: int
    horizon: int
    """Time limit of an episode, in steps."""
    wall_seconds: float
    rows: tuple[Table1Row, ...]
    paper: dict[str, dict[str, float]]
    """What the paper prints, by row."""


class Trained(NamedTuple):
    """One row with the ensembles behind it."""

    row: Table1Row
    config: RunConfig
    """Settings of the training."""
    task: Task
    """The gridworld with as many experts."""
    heads: Params
    """Final expert heads [K, E, …]."""
    metrics: Metrics | None
    """[K, updates, …]; None for the rows that are halted."""


def reproduce(scale: Scale = Scale(), progress: ProgressFn = ignore_progress) -> Table1:
    """Reproduce the paper's Table 1.

    Args:
      scale: how much to compute, such as ``ape_jax.evaluation.reproduce.QUICK``.
      progress: called after every chunk of training.

    >>> import ape_jax
    >>> from ape_jax.evaluation.reproduce import Scale
    >>> result = ape_jax.reproduce(Scale(seeds=1, max_updates=2, num_demonstrations=1_000))
    >>> [row.name for row in result.rows][:3]
    ['optimal', 'near_optimal', 'random']
    """
    started = time.monotonic()
    trained = list(train_rows(scale, progress))
    return table1(trained, scale, time.monotonic() - started)


def table1(trained: Sequence[Trained], scale: Scale, wall_seconds: float) -> Table1:
    """The table of the rows that are finished."""
    rows = {one.row.name: one.row for one in trained}
    return Table1(
        seeds=scale.seeds,
        horizon=trained[0].task.world.horizon,
        wall_seconds=wall_seconds,
        rows=tuple(rows[name] for name in LABELS if name in rows),
        paper=PAPER,
    )


def train_rows(scale: Scale, progress: ProgressFn = ignore_progress) -> Iterator[Trained]:
    """Train and measure every row of the table, and yield each as soon as it is finished."""
    config = PGConfig(num_updates=min(3000, scale.max_updates))
    greedy_config = PGConfig(num_updates=min(2000, scale.max_updates), observer="posterior")
    single_config = dataclasses.replace(greedy_config, num_experts=1)
    pair, greedy, single = map(make_task, (config, greedy_config, single_config))
    greedy_hypers = PGHypers(beta=0.3, temperature=0.1)

    # Measuring depends on the number of experts only, not on whom they were trained against.
    def trained(name: str, task: Task, hypers: Hypers, measured: Task = pair) -> Trained:
        return _trained(name, task, hypers, measured, scale, progress)

    pg_ape = trained("pg_ape", pair, PGHypers())
    yield pg_ape
    yield trained("optimal", pair, PGHypers(beta=0.0))
    yield _halted("near_optimal", pair, pg_ape.row.pe_return, scale, progress)
    yield _halted("random", pair, pg_ape.row.mixture, scale, progress)
    yield trained("greedy_ape", greedy, greedy_hypers)
    yield trained("greedy_ape_single", single, greedy_hypers, single)


def _trained(
    name: str, task: Task, hypers: Hypers, measured: Task, scale: Scale, progress: ProgressFn
) -> Trained:
    progress(Progress(LABELS[name], 0, None, "compiling"))
    parts = []
    for chunk in Trainer(task).chunks(seed_keys(scale.first_seed, scale.seeds), hypers):
        parts.append(chunk.metrics)
        progress(Progress(LABELS[name], chunk.num_done, chunk.num_updates, metrics=chunk.metrics))
    metrics = jax.tree.map(lambda *x: np.concatenate(x, axis=1), *parts)
    num_updates = (chunk.num_done,) * scale.seeds
    config = RunConfig(task.config, hypers, scale.seeds, scale.first_seed)
    row = _row(name, measured, chunk.state, num_updates, scale, progress)
    return Trained(row, config, measured, chunk.state.params.heads, metrics)


def _halted(name: str, task: Task, target: MeanStd, scale: Scale, progress: ProgressFn) -> Trained:
    """Training without an observer; each seed is halted when it first reaches its target."""
    progress(Progress(LABELS[name], 0, None, "compiling"))
    hypers = PGHypers(beta=0.0)
    state = Trainer(task).create(seed_keys(scale.first_seed, scale.seeds), hypers)
    state, counts = _train_until(task, state, hypers, jnp.asarray(target.array, jnp.float32))
    config = RunConfig(task.config, hypers, scale.seeds, scale.first_seed)
    row = _row(name, task, state, tuple(counts.tolist()), scale, progress)
    return Trained(row, config, task, state.params.heads, None)


def _row(
    name: str,
    task: Task,
    state: TrainState,
    num_updates: tuple[int, ...],
    scale: Scale,
    progress: ProgressFn,
) -> Table1Row:
    keys = seed_keys(scale.first_seed, scale.seeds, EVALUATE)
    found = measure(task, state.params.heads, keys, scale.num_demonstrations)
    experts = np.asarray(found.pop("experts"), np.float64).tolist()
    row = Table1Row(
        name=name,
        num_updates=num_updates,
        expert_returns=tuple(map(tuple, experts)),
        **{column: MeanStd.over_seeds(values) for column, values in found.items()},
    )
    status = f"PE {row.pe_return.mean:.2f}  BC greedy {row.bc_greedy.mean:.2f}"
    progress(Progress(LABELS[name], max(num_updates), max(num_updates), status))
    return row


@partial(jax.jit, static_argnums=(0, 3))
def measure(
    task: Task, heads: Params, keys: Key[Array, " K"], num_demonstrations: int
) -> dict[str, Float[Array, "K ..."]]:
    """Measure every seed's ensemble [K, …], ten at a time: memory does not grow with the seeds."""
    return jax.lax.map(
        lambda one: measure_seed(task, one[0], one[1], num_demonstrations),
        (heads, keys),
        batch_size=10,
    )


def measure_seed(
    task: Task, heads: Params, key: PRNGKey, num_demonstrations: int
) -> dict[str, Float[Array, "..."]]:
    """Demonstrate, clone by counting, and evaluate everybody exactly; names as in the table."""
    mdp = _finite(task)
    key_collect, key_fit, key_returns = jax.random.split(key, 3)
    observer = TabularCloning(mdp.num_states, mdp.num_actions)
    shown, _ = collect.collect(key_collect, task, heads, num_demonstrations)
    clone = observer.fit(key_fit, shown)
    ensemble = returns.ensemble_returns(task, heads, key_returns)
    return {
        "experts": ensemble.experts,
        "pe_return": ensemble.pe,
        "greedy_experts": jnp.mean(ensemble.greedy_experts),
        "mixture": ensemble.mixture,
        "bc_sampled": returns.expected_return(task.world, clone, key_returns),
        "bc_greedy": returns.expected_return(task.world, returns.greedy(clone), key_returns),
        "floor": tabular.cloning_floor(mdp, jnp.exp(task.networks.tabulate_experts(heads))),
    }


@partial(jax.jit, static_argnums=0)
def _train_until(task: Task, state: TrainState, hypers: Hypers, targets: Float[Array, " K"]):
    return jax.vmap(train_until, (None, 0, None, 0))(task, state, hypers, targets)


def train_until(
    task: Task, state: TrainState, hypers: Hypers, target: Float[Array, ""]
) -> tuple[TrainState, Int[Array, ""]]:
    """Update until J(PE), evaluated exactly, reaches the target, or the updates run out.

    Returns:
      The state, and how many updates led to it.
    """
    mdp = _finite(task)

    def unfinished(carry):
        state, count = carry
        policies = jnp.exp(task.networks.tabulate_experts(state.params.heads))
        pe_return = jnp.mean(jax.vmap(tabular.policy_return, (None, 0))(mdp, policies))
        return (pe_return < target) & (count < task.config.num_updates)

    def one(carry):
        state, count = carry
        return update(task, state, hypers)[0], count + 1

    return jax.lax.while_loop(unfinished, one, (state, jnp.int32(0)))


class Panels(NamedTuple):
    """Policies for figures, of one seed: title to probabilities."""

    experts: Float[Array, "E S A"]
    observers: dict[str, Float[Array, "S A"]]


def panels(
    task: Task, heads: Params, key: PRNGKey, num_demonstrations: int, with_network: bool
) -> Panels:
    """Experts, observers and clones of one seed on a finite MDP; the clones are fitted here.

    Args:
      task: environment and networks.
      heads: parameters of the experts [E, …].
      key: drives demonstrations and fits.
      num_demonstrations: demonstration steps behind the clones.
      with_network: whether a network is fitted too, beside the clone that counts.
    """
    mdp = _finite(task)
    world = task.world
    spaces = world.env.observation_space(world.params), world.env.action_space(world.params)
    cloners: dict[str, Observer] = {"BC": TabularCloning(mdp.num_states, mdp.num_actions)}
    if with_network:
        cloners["BC (MLP)"] = BehaviourCloning(make_networks(recipe("mlp")[0], *spaces))

    @jax.jit
    def clones(key):
        key_collect, key_fit = jax.random.split(key)
        shown, _ = collect.collect(key_collect, task, heads, num_demonstrations)
        fitted = [cloner.fit(key_fit, shown) for cloner in cloners.values()]
        policies = [policy for clone in fitted for policy in (clone, returns.greedy(clone))]
        return [returns.policy_table(policy, mdp.num_states) for policy in policies]

    experts = jnp.exp(task.networks.tabulate_experts(heads))
    names = [f"{name}, {how}" for name in cloners for how in ("sampled", "greedy")]
    observers = {
        "mixture π_o": jnp.mean(experts, axis=0),
        **dict(zip(names, clones(key), strict=True)),
        "optimal policy": tabular.optimal_policy(mdp),
    }
    return Panels(experts, observers)


def _finite(task: Task) -> tabular.FiniteMDP:
    assert task.world.mdp is not None, "needs a finite MDP, such as the gridworld"
    return task.world.mdp
