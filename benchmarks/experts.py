"""Protection, price and time by the number of experts, on the gridworld.

There are two defences: the paper's, against the uniform mixture that samples, and one against the
greedy clone. Each has one β for all numbers of experts. All returns are exact. A control that is
trained without an observer gives the price.
"""

import dataclasses
import time
from typing import NamedTuple

import jax
import numpy as np
from rich.progress import Progress

from ape_jax import presets
from ape_jax.algorithms.task import Task, make_task
from ape_jax.config import Hypers, RunConfig, TrainConfig
from ape_jax.core.policies import greedy
from ape_jax.evaluation import returns
from ape_jax.evaluation.intervals import Interval
from ape_jax.evaluation.records import from_json, to_json
from ape_jax.observers.posterior import exact_posterior
from ape_jax.reporting import tables
from ape_jax.training.trainer import EVALUATE, Trainer, seed_keys
from ape_jax.types import Params, PRNGKey
from benchmarks import common

EXPERTS, SEEDS = (1, 2, 4, 8, 16), 5
FIRST_SEED = 1000
"""The settings were tuned on smaller seeds."""


COLUMNS = (
    *("defence", "num_experts", "pe_return", "uniform_mixture", "sampling_clone", "greedy_clone"),
    *("protection", "price", "update_ms"),
)


class Defence(NamedTuple):
    """An ensemble to train, and the clone that it is trained against."""

    settings: RunConfig
    clone: str


DEFENCES = {
    "against the uniform mixture": Defence(presets.config("paper"), "uniform_mixture"),
    "against the greedy clone": Defence(presets.config("gridworld"), "greedy_clone"),
}


def exact_returns(task: Task, heads: Params, key: PRNGKey) -> dict[str, jax.Array]:
    """Exact returns of one ensemble and of its three clones."""
    own = returns.ensemble_returns(task, heads, key)
    assert task.world.mdp is not None
    posterior = exact_posterior(task.world.mdp, task.networks, heads)
    return {
        "pe_return": own.pe,
        "worst_expert": own.experts.min(),
        "uniform_mixture": own.mixture,
        "sampling_clone": returns.expected_return(task.world, posterior, key),
        "greedy_clone": returns.expected_return(task.world, greedy(posterior), key),
    }


def trained(train: TrainConfig, hypers: Hypers, seeds: int) -> tuple[dict[str, np.ndarray], float]:
    """Returns [K] of every seed's ensemble, and the seconds of one update of all seeds."""
    task = make_task(train)
    first, started = 0, time.perf_counter()
    for chunk in Trainer(task).chunks(seed_keys(FIRST_SEED, seeds), hypers):
        if not first:
            first, started = (
                chunk.num_done,
                time.perf_counter(),
            )  # The first chunk includes compiling.
    seconds = (time.perf_counter() - started) / max(chunk.num_done - first, 1)
    keys = seed_keys(FIRST_SEED, seeds, EVALUATE)
    measure = jax.jit(jax.vmap(exact_returns, (None, 0, 0)), static_argnums=0)
    return jax.device_get(measure(task, chunk.state.params.heads, keys)), seconds


def row(name: str, defence: Defence, num_experts: int, num_updates: int | None, seeds: int) -> dict:
    """One row: a defence with so many experts; returns with intervals over seeds."""
    train = dataclasses.replace(
        defence.settings.train,
        num_experts=num_experts,
        num_updates=num_updates or defence.settings.train.num_updates,
    )
    got, seconds = trained(train, defence.settings.hypers, seeds)
    control, _ = trained(train, dataclasses.replace(defence.settings.hypers, beta=0.0), seeds)
    return {
        "defence": name,
        "clone": defence.clone,
        "num_experts": num_experts,
        "seeds": seeds,
        "num_updates": train.num_updates,
        **{of: to_json(Interval.over_seeds(values)) for of, values in got.items()},
        "protection": to_json(Interval.of_differences(got["pe_return"], got[defence.clone])),
        "price": to_json(Interval.of_differences(control["pe_return"], got["pe_return"])),
        "update_ms": 1e3 * seconds,
    }


def draw(result: dict):
    """Protection, price and time over the number of experts."""
    figure, panels = common.axes_of(3)
    colours = dict(zip(DEFENCES, (common.OURS, common.EAGER), strict=True))
    for name, colour in colours.items():
        rows = [row for row in result["rows"] if row["defence"] == name]
        experts = [row["num_experts"] for row in rows]
        for panel, of in zip(panels, ("protection", "price"), strict=False):
            low, mean, high = (
                np.array([row[of][bound] for row in rows], float)
                for bound in ("low", "mean", "high")
            )
            panel.errorbar(
                *(experts, mean),
                yerr=[mean - low, high - mean],
                marker="o",
                capsize=3,
                color=colour,
            )
        times = [row["update_ms"] for row in rows]
        panels[2].plot(experts, times, marker="o", color=colour, label=name)
    titles = ("protection: PE minus the clone's return", "price: PE without an observer minus PE")
    for panel, title in zip(
        panels, (*titles, f"ms an update of {result['rows'][0]['seeds']} seeds"), strict=True
    ):
        panel.set_title(title, fontsize=9)
        panel.set_xscale("log", base=2)
        panel.set_xlabel("experts")
        panel.set_xticks(EXPERTS, [str(count) for count in EXPERTS])
    panels[0].set_ylim(bottom=min(0.0, panels[0].get_ylim()[0]))
    panels[1].set_ylim(bottom=0)
    panels[2].set_yscale("log", base=2)
    panels[2].yaxis.set_major_formatter("{x:g}")
    panels[2].legend(fontsize=8)
    return figure


def main(arguments: list[str] | None = None) -> None:
    """Measure, write, print."""
    out, effort, console = common.options(__doc__, arguments)
    full = effort == common.FULL
    experts = EXPERTS if full else EXPERTS[:2]
    result: dict = {"device": common.device(), "rows": []}
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("experts", total=len(experts) * len(DEFENCES))
        for count in experts:
            for name, defence in DEFENCES.items():
                result["rows"].append(
                    row(name, defence, count, None if full else 100, SEEDS if full else 2)
                )
                common.write(result, out)
                progress.advance(bar)
    rows = [
        {
            of: tables.with_interval(from_json(Interval, x), ".4g") if isinstance(x, dict) else x
            for of, x in row.items()
        }
        for row in result["rows"]
    ]
    table = common.table_of(rows, {of.replace("_", " "): of for of in COLUMNS}, "More experts")
    common.publish(result, draw(result), table, out, console)


if __name__ == "__main__":
    main()
