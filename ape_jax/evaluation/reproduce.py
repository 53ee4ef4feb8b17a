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
from ape_jax.config import PGConfig, PGHypers, RunConfig, recipe
from ape_jax.core import tabular
from ape_jax.core.policies import greedy
from ape_jax.demonstrations import collect
from ape_jax.evaluation import returns
from ape_jax.evaluation.intervals import MeanStd
from ape_jax.evaluation.measure import over_seeds
from ape_jax.evaluation.progress import Progress, ProgressFn, ignore_progress, train
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
    """Amounts of data and computation of a reproduction."""

    seeds: int = 10
    first_seed: int = 0
    max_updates: int = 3000
    """No row trains longer than this, or than its own number of updates."""
    num_demonstrations: int = 1_000_000
    """Demonstration steps, pooled over the experts."""


QUICK = Scale(seeds=3, max_updates=400, num_demonstrations=100_000)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table1Row:
    """Undiscounted returns of one kind of ensemble and of its clones, all of them exact."""

    name: str
    num_updates: tuple[int, ...]
    """Updates of each seed; fewer than configured for the rows that are halted."""
    pe_return: MeanStd
    """Return of the ensemble: the experts' mean."""
    expert_returns: tuple[tuple[float, ...], ...]
    """[K, E]."""
    greedy_experts: MeanStd
    """Mean over the experts, each deployed greedily itself."""
    mixture: MeanStd
    """Return of the uniform mixture π_o, which samples."""
    bc_sampled: MeanStd
    """Return of behaviour cloning, deployed as a policy that samples."""
    bc_greedy: MeanStd
    floor: MeanStd
    """Least return of the ideal sampling cloner."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table1:
    """The content of ``table1.json``."""

    seeds: int
    horizon: int
    wall_seconds: float
    rows: tuple[Table1Row, ...]
    paper: dict[str, dict[str, float]]
    """The numbers that the paper prints, by row."""


class Trained(NamedTuple):
    """One row with the ensembles behind it."""

    row: Table1Row
    config: RunConfig
    task: Task
    """The gridworld with as many experts."""
    heads: Params
    """[K, E, …]."""
    metrics: Metrics | None
    """[K, updates, …]; None for the rows that are halted."""


def reproduce(scale: Scale = Scale(), progress: ProgressFn = ignore_progress) -> Table1:
    """Reproduce the paper's Table 1.

    Args:
      scale: how much to compute, such as ``ape_jax.evaluation.reproduce.QUICK``.
      progress: called after every chunk of training.

    Examples:
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
    pair, against_greedy, single = map(make_task, (config, greedy_config, single_config))
    greedy_hypers, no_observer = PGHypers(beta=0.3, temperature=0.1), PGHypers(beta=0.0)
    keys = seed_keys(scale.first_seed, scale.seeds)
    evaluation_keys = seed_keys(scale.first_seed, scale.seeds, EVALUATE)

    # Measuring depends on the number of experts only, not on whom they were trained against.
    def trained(name: str, task: Task, hypers: PGHypers, measured: Task = pair) -> Trained:
        state, metrics = train(LABELS[name], task, keys, hypers, progress)
        num_updates = (task.config.num_updates,) * scale.seeds
        return finished(name, task, hypers, measured, state, num_updates, metrics)

    def halted(name: str, target: MeanStd) -> Trained:
        """Each seed is halted when it first reaches its target."""
        progress(Progress(LABELS[name], 0, None, "compiling"))
        state = Trainer(pair).create(keys, no_observer)
        targets = jnp.asarray(target.array, jnp.float32)
        state, counts = _train_until(pair, state, no_observer, targets)
        return finished(name, pair, no_observer, pair, state, tuple(counts.tolist()), None)

    def finished(name, task, hypers, measured, state, num_updates, metrics) -> Trained:
        run = RunConfig(task.config, hypers, scale.seeds, scale.first_seed)
        found = measure(measured, state.params.heads, evaluation_keys, scale.num_demonstrations)
        experts = np.asarray(found.pop("experts"), np.float64).tolist()
        row = Table1Row(
            name=name,
            num_updates=num_updates,
            expert_returns=tuple(map(tuple, experts)),
            **{column: MeanStd.over_seeds(values) for column, values in found.items()},
        )
        status = f"PE {row.pe_return.mean:.2f}  BC greedy {row.bc_greedy.mean:.2f}"
        progress(Progress(LABELS[name], max(num_updates), max(num_updates), status))
        return Trained(row, run, measured, state.params.heads, metrics)

    pg_ape = trained("pg_ape", pair, PGHypers())
    yield pg_ape
    yield trained("optimal", pair, no_observer)
    yield halted("near_optimal", pg_ape.row.pe_return)
    yield halted("random", pg_ape.row.mixture)
    yield trained("greedy_ape", against_greedy, greedy_hypers)
    yield trained("greedy_ape_single", single, greedy_hypers, single)


@partial(jax.jit, static_argnums=(0, 3))
def measure(
    task: Task, heads: Params, keys: Key[Array, " K"], num_demonstrations: int
) -> dict[str, Float[Array, "K ..."]]:
    """Demonstrate, clone by counting, and evaluate exactly every seed's ensemble [K, E, …].

    The names are those of the table's columns.
    """
    mdp = _finite(task)

    def one(heads, key):
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
            "bc_greedy": returns.expected_return(task.world, greedy(clone), key_returns),
            "floor": tabular.cloning_floor(mdp, jnp.exp(task.networks.tabulate_experts(heads))),
        }

    return over_seeds(one, heads, keys)


@partial(jax.jit, static_argnums=0)
def _train_until(
    task: Task, state: TrainState, hypers: PGHypers, targets: Float[Array, " K"]
) -> tuple[TrainState, Int[Array, " K"]]:
    """Update until J(PE), evaluated exactly, reaches each seed's target, or updates run out.

    Returns:
      The states, and how many updates led to them.
    """
    mdp = _finite(task)

    def one(state, target):
        def unfinished(carry):
            state, count = carry
            policies = jnp.exp(task.networks.tabulate_experts(state.params.heads))
            pe_return = jnp.mean(jax.vmap(tabular.policy_return, (None, 0))(mdp, policies))
            return (pe_return < target) & (count < task.config.num_updates)

        def step(carry):
            state, count = carry
            return update(task, state, hypers)[0], count + 1

        return jax.lax.while_loop(unfinished, step, (state, jnp.int32(0)))

    return jax.vmap(one)(state, targets)


class Panels(NamedTuple):
    """Policies for figures, of one seed: titles to probabilities."""

    experts: dict[str, Float[Array | np.ndarray, "..."]]
    """[S, A] of each expert, and [E, S, A] of all together where there are several."""
    observers: dict[str, Float[Array | np.ndarray, "S A"]]


def panels(
    task: Task, heads: Params, key: PRNGKey, num_demonstrations: int, with_network: bool
) -> Panels:
    """Experts [E, …], observers and clones of one seed on a finite MDP.

    The clones are fitted here, to so many demonstration steps: one that counts and, if asked for, a
    network.
    """
    mdp, world = _finite(task), task.world
    cloners: dict[str, Observer] = {"BC": TabularCloning(mdp.num_states, mdp.num_actions)}
    if with_network:
        networks = make_networks(recipe("mlp")[0], world.observation_space, world.action_space)
        cloners["BC (MLP)"] = BehaviourCloning(networks)

    @jax.jit
    def clones(key):
        key_collect, key_fit = jax.random.split(key)
        shown, _ = collect.collect(key_collect, task, heads, num_demonstrations)
        fitted = [cloner.fit(key_fit, shown) for cloner in cloners.values()]
        policies = [policy for clone in fitted for policy in (clone, greedy(clone))]
        return [returns.policy_table(policy, mdp.num_states) for policy in policies]

    policies = jnp.exp(task.networks.tabulate_experts(heads))
    experts = {f"expert {index + 1}": policy for index, policy in enumerate(policies)}
    if len(experts) > 1:
        experts["average of the experts"] = policies
    names = [f"{name}, {how}" for name in cloners for how in ("sampled", "greedy")]
    observers = {
        "mixture π_o": jnp.mean(policies, axis=0),
        **dict(zip(names, clones(key), strict=True)),
        "optimal policy": tabular.optimal_policy(mdp),
    }
    return Panels(experts, observers)


def _finite(task: Task) -> tabular.FiniteMDP:
    assert task.world.mdp is not None, "needs a finite MDP, such as the gridworld"
    return task.world.mdp
