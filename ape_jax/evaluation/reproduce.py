"""The paper's Table 1 and Figures 3 and 4 on the gridworld, with the observers that it left out."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from omegaconf import OmegaConf

from ape_jax.algorithms import TrainState, update
from ape_jax.algorithms.common import Metrics
from ape_jax.algorithms.task import Task, make_task
from ape_jax.config import Hypers, PGConfig, PGHypers, RunConfig, recipe
from ape_jax.core import tabular
from ape_jax.demonstrations import collect
from ape_jax.envs import GridWorld
from ape_jax.evaluation import returns as evaluation
from ape_jax.evaluation.intervals import over_seeds
from ape_jax.networks import make_networks
from ape_jax.observers import BehaviourCloning, TabularCloning
from ape_jax.reporting import figures as plotting
from ape_jax.reporting import tables
from ape_jax.runs.metrics import write_json
from ape_jax.training.trainer import EVALUATE, Chunk, Trainer, seed_keys
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
"""The paper's Table 1. Its other two ensembles are halted where one matches these experts and the
other this clone, so they hold no further result."""


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much to compute."""

    seeds: int = 10
    """Ensembles of each kind."""
    first_seed: int = 0
    """They are numbered from here."""
    max_updates: int = 3000
    """No row trains longer than this, or than its own number of updates."""
    num_demonstrations: int = 1_000_000
    """Steps, pooled over the experts."""


class Returns(NamedTuple):
    """Undiscounted returns of one ensemble and of its clones, all of them exact evaluations."""

    experts: Float[Array, " E"]
    """Of every expert, sampling."""
    pe: Float[Array, ""]
    """Of the ensemble: the experts' mean."""
    greedy_experts: Float[Array, ""]
    """Mean over the experts, each deployed greedily itself."""
    mixture: Float[Array, ""]
    """Of the uniform mixture π_o, sampling."""
    bc_sampled: Float[Array, ""]
    """Of behaviour cloning, sampling."""
    bc_greedy: Float[Array, ""]
    """Of behaviour cloning, greedy."""
    floor: Float[Array, ""]
    """The cloning floor."""


class Row(NamedTuple):
    """One line of the table."""

    name: str
    """Of the ensemble, as in ``LABELS``."""
    config: RunConfig
    """What it was trained with."""
    heads: Params
    """Final expert heads [K, E, …]."""
    returns: Returns
    """[K, …]."""
    num_updates: list[int]
    """Of each seed; fewer than configured for the rows that are halted."""
    metrics: Metrics | None
    """[K, updates, …]; None for the rows that are halted."""

    def to_json(self) -> dict:
        """The row as ``table1.json`` holds it."""
        returns = self.returns
        return {
            "name": self.name,
            "num_updates": self.num_updates,
            "pe_return": over_seeds(returns.pe),
            "expert_returns": np.asarray(returns.experts, np.float64).tolist(),
            "greedy_experts": over_seeds(returns.greedy_experts),
            "mixture": over_seeds(returns.mixture),
            "bc_sampled": over_seeds(returns.bc_sampled),
            "bc_greedy": over_seeds(returns.bc_greedy),
            "floor": over_seeds(returns.floor),
        }


FIGURES = ("figure3.png", "figure4.png", "learning_curves.png")
"""Files of the figures."""

Report = Callable[[str, Chunk | None], None]
"""Told the name of the row at work, and its newest chunk where it trains in chunks."""


class Reproduction:
    """Makes the rows; programs are compiled once and shared between them."""

    def __init__(self, scale: Scale):
        self.scale = scale
        self.train_keys = seed_keys(scale.first_seed, scale.seeds)
        self.evaluation_keys = seed_keys(scale.first_seed, scale.seeds, EVALUATE)
        pair = PGConfig(num_updates=min(3000, scale.max_updates))
        greedy = PGConfig(num_updates=min(2000, scale.max_updates), observer="posterior")
        single = dataclasses.replace(greedy, num_experts=1)
        self._pair, self._greedy, self._single = (
            Trainer(make_task(config)) for config in (pair, greedy, single)
        )
        self._measure = jax.jit(measure_seeds, static_argnums=(0, 3))
        self._train_until = jax.jit(
            jax.vmap(train_until, in_axes=(None, 0, None, 0)), static_argnums=0
        )

    @property
    def task(self) -> Task:
        """The gridworld with two experts."""
        return self._pair.task

    def rows(self, report: Report) -> Iterator[Row]:
        """Every row, as soon as it is finished."""
        greedy = PGHypers(beta=0.3, temperature=0.1)
        pg_ape = self._trained("pg_ape", self._pair, PGHypers(), report)
        yield pg_ape
        yield self._trained("optimal", self._pair, PGHypers(beta=0.0), report)
        yield self._halted("near_optimal", pg_ape.returns.pe, report)
        yield self._halted("random", pg_ape.returns.mixture, report)
        yield self._trained("greedy_ape", self._greedy, greedy, report)
        yield self._trained("greedy_ape_single", self._single, greedy, report)

    def draw(self, rows: list[Row], out: Path) -> None:
        """Write Figures 3 and 4, of the first seed, and the learning curves."""
        by_name = {row.name: row for row in rows}
        key = seed_keys(self.scale.first_seed, 1, EVALUATE)[0]
        shown = {
            LABELS[name]: panels(self.task, by_name[name], key, self.scale.num_demonstrations)
            for name in ("pg_ape", "greedy_ape")
        }
        env = cast(GridWorld, self.task.world.env)
        for number, title, content in (
            (
                3,
                "The experts, and the ensemble that an observer sees",
                {label: panel.ensemble for label, panel in shown.items()},
            ),
            (
                4,
                "What observers make of it",
                {label: panel.observers for label, panel in shown.items()},
            ),
        ):
            figure = plotting.policy_figure(env, _finite(self.task), content, title)
            plotting.save_figure(figure, out / f"figure{number}.png")
        curves = {
            label: metrics
            for name, label in LABELS.items()
            if (metrics := by_name[name].metrics) is not None
        }
        figure = plotting.learning_curves(curves, -self.task.world.horizon)
        plotting.save_figure(figure, out / "learning_curves.png")

    def _trained(self, name: str, runner: Trainer, hypers: Hypers, report: Report) -> Row:
        report(name, None)
        parts = []
        for chunk in runner.chunks(self.train_keys, hypers):
            parts.append(chunk.metrics)
            report(name, chunk)
        metrics = jax.tree.map(lambda *x: np.concatenate(x, axis=1), *parts)
        num_updates = [chunk.num_done] * self.scale.seeds
        return self._row(name, runner, hypers, chunk.state, num_updates, metrics)

    def _halted(self, name: str, target: Float[Array, " K"], report: Report) -> Row:
        """Plain training, each seed halted at the first update that reaches its target."""
        report(name, None)
        hypers = PGHypers(beta=0.0)
        state = self._pair.create(self.train_keys, hypers)
        state, counts = self._train_until(self._pair.task, state, hypers, target)
        return self._row(name, self._pair, hypers, state, counts.tolist(), None)

    def _row(
        self,
        name: str,
        runner: Trainer,
        hypers: Hypers,
        state: TrainState,
        num_updates: list[int],
        metrics: Metrics | None,
    ) -> Row:
        config = RunConfig(runner.task.config, hypers, self.scale.seeds, self.scale.first_seed)
        heads = state.params.heads
        # Measuring depends on the number of experts alone, not on whom they were trained against.
        task = self._single.task if runner is self._single else self._pair.task
        returns = self._measure(task, heads, self.evaluation_keys, self.scale.num_demonstrations)
        return Row(name, config, heads, jax.block_until_ready(returns), num_updates, metrics)


def measure(task: Task, heads: Params, key: PRNGKey, num_demonstrations: int) -> Returns:
    """Demonstrate, clone by counting, and evaluate everybody exactly."""
    mdp = _finite(task)
    key_collect, key_fit, key_returns = jax.random.split(key, 3)
    observer = TabularCloning(mdp.num_states, mdp.num_actions)
    shown, _ = collect.collect(key_collect, task, heads, num_demonstrations)
    clone = observer.fit(key_fit, shown)
    ensemble = evaluation.ensemble_returns(task, heads, key_returns)
    return Returns(
        experts=ensemble.experts,
        pe=ensemble.pe,
        greedy_experts=jnp.mean(ensemble.greedy_experts),
        mixture=ensemble.mixture,
        bc_sampled=evaluation.expected_return(task.world, clone, key_returns),
        bc_greedy=evaluation.expected_return(task.world, evaluation.greedy(clone), key_returns),
        floor=tabular.cloning_floor(mdp, jnp.exp(task.networks.tabulate_experts(heads))),
    )


def measure_seeds(
    task: Task, heads: Params, keys: Key[Array, " K"], num_demonstrations: int
) -> Returns:
    """Measure every seed [K, …], ten at a time: memory does not grow with the seeds."""
    return jax.lax.map(
        lambda one: measure(task, one[0], one[1], num_demonstrations), (heads, keys), batch_size=10
    )


def train_until(
    task: Task, state: TrainState, hypers: Hypers, target: Float[Array, ""]
) -> tuple[TrainState, Int[Array, ""]]:
    """Update until J(PE), evaluated exactly, reaches the target, or the updates run out.

    Returns:
      The state, and how many updates led to it.
    """
    mdp = _finite(task)

    def goes_on(carry):
        state, count = carry
        policies = jnp.exp(task.networks.tabulate_experts(state.params.heads))
        pe_return = jnp.mean(jax.vmap(tabular.policy_return, (None, 0))(mdp, policies))
        return (pe_return < target) & (count < task.config.num_updates)

    def one(carry):
        state, count = carry
        return update(task, state, hypers)[0], count + 1

    return jax.lax.while_loop(goes_on, one, (state, jnp.int32(0)))


class Panels(NamedTuple):
    """Policies for the figures, of the first seed: title to probabilities."""

    ensemble: dict[str, Array]
    """Figure 3: each expert [S, A], and all of them [E, S, A]."""
    observers: dict[str, Array]
    """Figure 4: [S, A]."""


def panels(task: Task, row: Row, key: Key[Array, ""], num_demonstrations: int) -> Panels:
    """Experts, observers and clones of a row's first seed; its clones are fitted afresh."""
    mdp = _finite(task)
    heads = jax.tree.map(lambda x: x[0], row.heads)
    experts = jnp.exp(task.networks.tabulate_experts(heads))
    space = (
        task.world.env.observation_space(task.world.params),
        task.world.env.action_space(task.world.params),
    )
    mlp = make_networks(recipe("mlp")[0], *space)

    @jax.jit
    def clones(key):
        key_collect, key_fit = jax.random.split(key)
        shown, _ = collect.collect(key_collect, task, heads, num_demonstrations)
        counted = TabularCloning(mdp.num_states, mdp.num_actions).fit(key_fit, shown)
        fitted = BehaviourCloning(mlp).fit(key_fit, shown)
        policies = (counted, evaluation.greedy(counted), fitted, evaluation.greedy(fitted))
        return [evaluation.policy_table(policy, mdp.num_states) for policy in policies]

    counted, counted_greedy, fitted, fitted_greedy = clones(key)
    ensemble = {f"expert {index + 1}": expert for index, expert in enumerate(experts)}
    ensemble["average of the experts"] = experts
    observers = {
        "mixture π_o": jnp.mean(experts, axis=0),
        "BC, sampled": counted,
        "BC, greedy": counted_greedy,
        "BC (MLP), sampled": fitted,
        "BC (MLP), greedy": fitted_greedy,
        "optimal policy": tabular.optimal_policy(mdp),
    }
    return Panels(ensemble, observers)


def table_json(rows: list[Row], scale: Scale, horizon: int, started: float) -> dict:
    """The content of ``table1.json``, also of a table that is not finished."""
    by_name = {row.name: row for row in rows}
    return {
        "seeds": scale.seeds,
        "horizon": horizon,
        "wall_seconds": time.monotonic() - started,
        "rows": [by_name[name].to_json() for name in LABELS if name in by_name],
        "paper": PAPER,
    }


def write_table(out: Path, content: dict) -> None:
    """Write ``table1.json`` and ``table1.md``."""
    write_json(out / "table1.json", content)
    header, lines = tables.table1_cells(content, LABELS)
    paragraphs = (tables.markdown_table(header, lines), tables.EXPLANATION, tables.PAPER_NOTE)
    (out / "table1.md").write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")


def write_settings(out: Path, rows: list[Row]) -> None:
    """Write ``config.yaml``: each row's settings, named as ``ape-jax train`` names them.

    The halted rows have the optimal one's; ``table1.json`` says where each of their seeds stopped.
    """
    content = OmegaConf.create({row.name: row.config.to_flat() for row in rows})
    (out / "config.yaml").write_text(OmegaConf.to_yaml(content), encoding="utf-8")


def _finite(task: Task) -> tabular.FiniteMDP:
    assert task.world.mdp is not None, "the reproduction runs on the gridworld"
    return task.world.mdp
