"""PPO on CartPole-v1 against PPO as it is usually written; what ensembles and images cost on top.

Whole runs are timed by turns, each with its own seed. The return at the end is the mean over the
last tenth of a run. Ensembles are those of the preset ``cartpole``, compared with one of its
experts without an observer; the one that sees images is the preset ``breakout``. Besides seconds by
the clock, seconds of the processor are counted, summed over threads, because other work on the
machine changes them less. Where a GPU computes, they are the seconds of the host's processor.
"""

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

import jax
from jaxtyping import Array, Float
from rich.console import Console

from ape_jax import algorithms, presets
from ape_jax.algorithms import ppo_state
from ape_jax.algorithms.task import make_task
from ape_jax.config import Hypers, PPOConfig, PPOHypers
from ape_jax.types import PRNGKey
from benchmarks import common, plain_ppo

ENV = "CartPole-v1"
ENVS, STEPS = (4, 64), 500_000
EXPERTS, UPDATES = (1, 2, 4, 8, 16), 4
IMAGES = "breakout"
BUDGET = 40.0
"""Seconds after which an ensemble leaves, once it has been timed twice."""
CONFIG = PPOConfig(
    env=ENV,
    num_experts=1,
    observer="none",
    head="mlp",
    hidden_sizes=(64, 64),
    rollout_length=128,
    num_epochs=4,
    num_minibatches=4,
)
HYPERS = PPOHypers(
    beta=0.0,
    learning_rate=2.5e-4,
    critic_learning_rate=1e-3,
    lr_end_fraction=0.0,
    max_grad_norm=0.5,
    gamma=0.99,
    ent_coef=0.01,
)
"""The numbers of plain PPO, except for the learning rate of the critics. Plain PPO has one rate for
policy and critic, clips their gradients by one norm, and also clips values."""
PLAIN_COLUMNS = {
    "B": "num_envs",
    "ours": "ours_steps_per_second",
    "plain": "plain_steps_per_second",
    "ratio": "ratio",
    "best": "ratio_best",
    "cpu": "ratio_cpu",
    "compile": "ours_compile_cpu_seconds",
    "plain compile": "plain_compile_cpu_seconds",
    "return": "ours_return",
    "plain return": "plain_return",
}
"""Environment steps a second; their ratio by the median, by the best run and by seconds of the
processor; and processor seconds of compiling."""
ENSEMBLE_COLUMNS = {
    "E": "num_experts",
    "observer": "observer",
    "envs": "num_envs",
    "steps / s": "steps_per_second",
    "update s": "update_seconds",
    "best": "best_update_seconds",
    "cpu": "cpu_update_seconds",
    "x one": "times_one_expert",
    "x one, cpu": "times_one_expert_cpu",
}
IMAGES_COLUMNS = {
    "environment": "env",
    "envs": "num_envs",
    "steps / s": "steps_per_second",
    "steps / s of a core": "steps_per_cpu_second",
}


class Program(NamedTuple):
    """A whole run of training, compiled."""

    run: Callable[[PRNGKey], Float[Array, " updates"]]
    """Maps a key to the mean return of the latest episodes at every update, and waits for it."""
    spent: dict[str, float]
    """Seconds of tracing and compiling."""


def compiled(train: Callable, *arguments) -> tuple[jax.stages.Compiled, dict[str, float]]:
    """The program, and the seconds that tracing and compiling took, by clock and by processor."""
    started, cpu_started = time.perf_counter(), time.process_time()
    program = jax.jit(train).lower(*arguments).compile()
    spent = time.perf_counter() - started, time.process_time() - cpu_started
    return program, {"compile_seconds": spent[0], "compile_cpu_seconds": spent[1]}


def ours(num_envs: int, num_updates: int) -> Program:
    """PPO of ``ape_jax``, with one expert and no observer."""
    config = dataclasses.replace(CONFIG, envs_per_expert=num_envs, num_updates=num_updates)
    program, spent = compiled(algorithms.make_train(config), jax.random.key(0), HYPERS)

    def run(key: PRNGKey) -> Float[Array, " updates"]:
        _, metrics = jax.block_until_ready(program(key, HYPERS))
        return metrics.pe_return

    return Program(run, spent)


def plain(num_envs: int, num_updates: int) -> Program:
    """Plain PPO."""
    train = plain_ppo.make_train(ENV, num_envs, num_updates=num_updates)
    program, spent = compiled(train, jax.random.key(0))

    def run(key: PRNGKey) -> Float[Array, " updates"]:
        _, metrics = jax.block_until_ready(program(key))
        return metrics["episode_return"]

    return Program(run, spent)


def against_plain(num_envs: int, num_steps: int, repeats: int) -> dict:
    """One row: several runs of each side by turns, with seeds 0, 1, …; one run warms up."""
    num_updates = max(1, num_steps // (num_envs * CONFIG.rollout_length))
    steps = num_updates * num_envs * CONFIG.rollout_length
    programs = {"ours": ours(num_envs, num_updates), "plain": plain(num_envs, num_updates)}
    keys = jax.block_until_ready(list(jax.random.split(jax.random.key(0), repeats)))
    speeds: dict[str, list[float]] = {name: [] for name in programs}
    cpu_speeds: dict[str, list[float]] = {name: [] for name in programs}
    ends: dict[str, list[float]] = {name: [] for name in programs}
    for program in programs.values():
        program.run(keys[0])
    for key in keys:
        for name, program in programs.items():
            started, cpu_started = time.perf_counter(), time.process_time()
            episode_return = program.run(key)
            speeds[name].append(steps / (time.perf_counter() - started))
            cpu_speeds[name].append(steps / (time.process_time() - cpu_started))
            ends[name].append(plain_ppo.final_return({"episode_return": episode_return}))
    row: dict = {"num_envs": num_envs, "num_updates": num_updates, "steps": steps}
    for name, program in programs.items():
        row |= {
            f"{name}_steps_per_second": median(speeds[name]),
            f"{name}_best_steps_per_second": max(speeds[name]),
            f"{name}_spread": [min(speeds[name]), max(speeds[name])],
            f"{name}_steps_per_cpu_second": median(cpu_speeds[name]),
            **{f"{name}_{key}": seconds for key, seconds in program.spent.items()},
            f"{name}_return": mean(ends[name]),
            f"{name}_returns": ends[name],
        }
    speed_of = {
        "ratio": "steps_per_second",
        "ratio_best": "best_steps_per_second",
        "ratio_cpu": "steps_per_cpu_second",
    }
    return row | {ratio: row[f"ours_{x}"] / row[f"plain_{x}"] for ratio, x in speed_of.items()}


class Ensemble:
    """The first updates of training in one program, from the same untrained state every time."""

    def __init__(self, config: PPOConfig, hypers: Hypers):
        """Compile."""
        task = make_task(config)
        state = jax.jit(algorithms.init, static_argnums=1)(jax.random.key(0), task, hypers)
        self.num_envs = ppo_state.num_environments(task)
        self.config = config
        self.cpu_seconds: list[float] = []
        """Processor seconds of an update, one entry for each call of ``work``."""
        leaves, tree = jax.tree.flatten(state)

        def run(leaves, hypers):
            state, metrics = algorithms.updates(
                task, tree.unflatten(leaves), hypers, config.num_updates
            )
            return jax.tree.leaves(state), metrics

        program, self.spent = compiled(run, leaves, hypers)
        self._run = functools.partial(program, leaves, hypers)

    def work(self, count: int) -> None:
        """Run the program several times, one after the other."""
        started = time.process_time()
        for _ in range(count):
            jax.block_until_ready(self._run())
        updates = count * self.config.num_updates
        self.cpu_seconds.append((time.process_time() - started) / updates)


def ensembles(sizes: Sequence[int], num_updates: int, effort: common.Effort) -> list[dict]:
    """Rows by number of experts, all timed by turns.

    The first row is one expert without an observer; the other rows are compared with it.
    """
    preset = presets.config("cartpole")
    assert isinstance(preset.train, PPOConfig)
    alone = dataclasses.replace(
        preset.train, num_experts=1, observer="none", num_updates=num_updates
    )
    observed = [dataclasses.replace(alone, observer="learned", num_experts=size) for size in sizes]
    compiled_ones = [Ensemble(config, preset.hypers) for config in [alone, *observed]]
    found = common.rates({str(i): x.work for i, x in enumerate(compiled_ones)}, effort)
    rows: list[dict] = []
    for rate, ensemble in zip(found.values(), compiled_ones, strict=True):
        config = ensemble.config
        seconds, *spread = (1 / (num_updates * x) for x in (rate.median, rate.high, rate.low))
        cpu_seconds = median(ensemble.cpu_seconds)
        row = {
            "num_experts": config.num_experts,
            "observer": config.observer,
            "num_envs": ensemble.num_envs,
            "steps_per_second": ensemble.num_envs * config.rollout_length / seconds,
            "best_steps_per_second": ensemble.num_envs * config.rollout_length / spread[0],
            "update_seconds": seconds,
            "best_update_seconds": spread[0],
            "cpu_update_seconds": cpu_seconds,
            "spread_update_seconds": spread,
            **ensemble.spent,
        }
        first = rows[0] if rows else row
        row["times_one_expert"] = seconds / first["update_seconds"]
        row["times_one_expert_best"] = spread[0] / first["best_update_seconds"]
        row["times_one_expert_cpu"] = cpu_seconds / first["cpu_update_seconds"]
        rows.append(row)
    return rows


def images(effort: common.Effort) -> dict:
    """A row: updates of the ensemble that sees images."""
    preset = presets.config(IMAGES)
    assert isinstance(preset.train, PPOConfig)
    ensemble = Ensemble(dataclasses.replace(preset.train, num_updates=1), preset.hypers)
    (rate,) = common.rates({"0": ensemble.work}, effort).values()
    steps = ensemble.num_envs * preset.train.rollout_length
    return {
        "env": preset.train.env,
        "num_experts": preset.train.num_experts,
        "num_envs": ensemble.num_envs,
        "steps_per_second": steps * rate.median,
        "spread_steps_per_second": [steps * x for x in rate.as_json()],
        "steps_per_cpu_second": steps / median(ensemble.cpu_seconds),
        **ensemble.spent,
    }


def draw(result: dict):
    """Environment steps a second of both sides, and the time of an ensemble's update."""
    figure, (left, right) = common.axes_of(2)
    rows, many = result["rows"], result["ensembles"]
    for offset, name, colour in ((-0.2, "ours", common.OURS), (0.2, "plain", common.EAGER)):
        speeds = [row[f"{name}_steps_per_second"] for row in rows]
        places = [i + offset for i in range(len(rows))]
        label = {"ours": "ape_jax", "plain": "plain PPO"}[name]
        left.bar(places, speeds, width=0.4, color=colour, label=label)
    left.set_xticks(range(len(rows)), [f"{row['num_envs']} environments" for row in rows])
    left.set_ylabel("environment steps a second")
    left.legend()
    sizes, times = ([row[x] for row in many[1:]] for x in ("num_experts", "times_one_expert"))
    right.loglog(sizes, times, "o-", base=2, color=common.OURS, label="ape_jax")
    right.loglog(
        *(sizes, [2 * x for x in sizes], ":"),
        base=2,
        color=common.CEILING,
        label="as many times the environments",
    )
    right.set_xlabel("experts, observed")
    right.set_ylabel("time of an update, one expert alone = 1")
    right.legend()
    return figure


def measure(
    num_steps: int,
    repeats: int,
    effort: common.Effort,
    sizes: Sequence[int] = EXPERTS,
    num_updates: int = UPDATES,
    note: Callable[[dict], None] = lambda _: None,
) -> dict:
    """All parts; the result so far is noted after every row of the first."""
    rows: list[dict] = []
    result = {"device": common.device(), "env": ENV, "repeats": repeats, "rows": rows}
    for num_envs in ENVS:
        rows.append(against_plain(num_envs, num_steps, repeats))
        note(result)
    many = ensembles(sizes, num_updates, effort)
    return result | {"ensembles": many, "images": [images(effort)]}


def main(arguments: list[str] | None = None) -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a first look, in a minute or so")
    parser.add_argument("--steps", type=int, help=f"environment steps of a run; {STEPS}")
    parser.add_argument("--repeats", type=int, help=f"runs of each; {common.FULL.repeats}")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="JSON; a PNG is put beside it"
    )
    given = parser.parse_args(arguments)
    console = Console()
    effort = common.QUICK if given.quick else common.FULL
    repeats = given.repeats or effort.repeats
    steps = given.steps or (STEPS // 10 if given.quick else STEPS)
    effort = dataclasses.replace(effort, repeats=repeats, budget=BUDGET)
    with console.status("PPO by turns, then ensembles"):
        result = measure(
            *(steps, repeats, effort, EXPERTS[:2] if given.quick else EXPERTS),
            note=functools.partial(common.write, out=given.out),
        )
    console.print(common.table_of(result["ensembles"], ENSEMBLE_COLUMNS, "Ensembles, by turns"))
    console.print(common.table_of(result["images"], IMAGES_COLUMNS, "Images"))
    table = common.table_of(result["rows"], PLAIN_COLUMNS, f"PPO on {ENV}, steps a second")
    common.publish(result, draw(result), table, given.out, console)


if __name__ == "__main__":
    main()
