"""PPO on CartPole-v1 against PPO as it is usually written, and what an ensemble costs on top.

Whole runs, timed by turns, each from a seed of its own, whose last tenth gives the return at the
end. Ensembles are those of the preset ``cartpole``, against one of its experts without observer.
"""

import argparse
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

import jax
from jaxtyping import Array, Float
from rich.console import Console

from ape_jax import learner, ppo, presets, training
from ape_jax.config import Hypers, TrainConfig
from ape_jax.types import PRNGKey
from benchmarks import common, plain_ppo

ENV = "CartPole-v1"
ENVS, STEPS = (4, 64), 500_000
EXPERTS, UPDATES = (1, 2, 4, 8, 16), 20
CONFIG = TrainConfig(
    env=ENV,
    algorithm="ppo",
    num_experts=1,
    observer="none",
    head="mlp",
    hidden_sizes=(64, 64),
    segment_length=128,
    num_epochs=4,
    num_minibatches=4,
)
HYPERS = Hypers(
    beta=0.0,
    learning_rate=2.5e-4,
    critic_learning_rate=1e-3,
    final_rate_share=0.0,
    max_grad_norm=0.5,
    discount=0.99,
    entropy_bonus=0.01,
)
"""Those of the yardstick, but for the critics' rate, which it shares with the policy."""
AGAINST_PLAIN = {
    "environments": "num_envs",
    "ours": "ours_steps_per_second",
    "plain": "plain_steps_per_second",
    "ours / plain": "ratio",
    "of the best": "ratio_best",
    "compile s": "ours_compile_seconds",
    "plain, compile s": "plain_compile_seconds",
    "return": "ours_return",
    "plain, return": "plain_return",
}
OF_ENSEMBLES = {
    "experts": "num_experts",
    "observer": "observer",
    "trunk": "trunk",
    "environments": "num_envs",
    "steps / s": "steps_per_second",
    "update s": "update_seconds",
    "best": "best_update_seconds",
    "x one expert": "times_one_expert",
    "compile s": "compile_seconds",
}


class Program(NamedTuple):
    """A whole run of training, compiled."""

    run: Callable[[PRNGKey], Float[Array, " updates"]]
    """From its key to the mean return of the latest episodes at every update; awaited."""
    compile_seconds: float


def compiled(train: Callable, *arguments) -> tuple[jax.stages.Compiled, float]:
    """The program, and the seconds that tracing and compiling took."""
    started = time.perf_counter()
    program = jax.jit(train).lower(*arguments).compile()
    return program, time.perf_counter() - started


def ours(num_envs: int, num_updates: int) -> Program:
    """PPO of ``ape_jax``: one expert, and nobody who observes it."""
    config = dataclasses.replace(CONFIG, envs_per_expert=num_envs, num_updates=num_updates)
    program, seconds = compiled(learner.make_train(config), jax.random.key(0), HYPERS)

    def run(key: PRNGKey) -> Float[Array, " updates"]:
        _, metrics = jax.block_until_ready(program(key, HYPERS))
        return metrics.pe_return

    return Program(run, seconds)


def plain(num_envs: int, num_updates: int) -> Program:
    """The yardstick."""
    train = plain_ppo.make_train(ENV, num_envs, num_updates=num_updates)
    program, seconds = compiled(train, jax.random.key(0))

    def run(key: PRNGKey) -> Float[Array, " updates"]:
        _, metrics = jax.block_until_ready(program(key))
        return metrics["episode_return"]

    return Program(run, seconds)


def against_plain(num_envs: int, num_steps: int, repeats: int) -> dict:
    """One row: so many runs of each, by turns, seeds 0, 1, …; a run before them warms up."""
    num_updates = max(1, num_steps // (num_envs * CONFIG.segment_length))
    steps = num_updates * num_envs * CONFIG.segment_length
    programs = {"ours": ours(num_envs, num_updates), "plain": plain(num_envs, num_updates)}
    keys = jax.block_until_ready(list(jax.random.split(jax.random.key(0), repeats)))
    speeds: dict[str, list[float]] = {name: [] for name in programs}
    ends: dict[str, list[float]] = {name: [] for name in programs}
    for program in programs.values():
        program.run(keys[0])
    for key in keys:
        for name, program in programs.items():
            started = time.perf_counter()
            episode_return = program.run(key)
            speeds[name].append(steps / (time.perf_counter() - started))
            ends[name].append(plain_ppo.final_return({"episode_return": episode_return}))
    row: dict = {"num_envs": num_envs, "num_updates": num_updates, "steps": steps}
    for name, program in programs.items():
        row |= {
            f"{name}_steps_per_second": median(speeds[name]),
            f"{name}_best_steps_per_second": max(speeds[name]),
            f"{name}_spread": [min(speeds[name]), max(speeds[name])],
            f"{name}_compile_seconds": program.compile_seconds,
            f"{name}_return": mean(ends[name]),
            f"{name}_returns": ends[name],
        }
    return row | {
        "ratio": row["ours_steps_per_second"] / row["plain_steps_per_second"],
        "ratio_best": row["ours_best_steps_per_second"] / row["plain_best_steps_per_second"],
    }


class Ensemble:
    """The first updates of training in one program, from the same untrained state every time."""

    def __init__(self, config: TrainConfig, hypers: Hypers):
        """Compile."""
        task = training.make_task(config)
        state = jax.jit(learner.begin, static_argnums=1)(jax.random.key(0), task, hypers)
        self.num_envs = ppo.num_streams(task)
        self.config = config
        program, self.compile_seconds = compiled(
            lambda state, hypers: learner.updates(task, state, hypers, config.num_updates),
            *(state, hypers),
        )
        self._run = functools.partial(program, state, hypers)

    def work(self, count: int) -> None:
        """So many programs, one after the other."""
        for _ in range(count):
            jax.block_until_ready(self._run())


def ensembles(
    sizes: Sequence[int], trunks: Sequence[bool], num_updates: int, effort: common.Effort
) -> list[dict]:
    """Rows by experts and by whether they share their trunk, all timed by turns.

    The first row is one expert without observer, in whose seconds an update the others are given.
    """
    preset = presets.find("cartpole")
    first = dataclasses.replace(
        preset.train, num_experts=1, observer="none", num_updates=num_updates
    )
    settings = [first] + [
        dataclasses.replace(first, observer="learned", num_experts=size, shared_trunk=trunk)
        for trunk in trunks
        for size in sizes
    ]
    all_of_them = [Ensemble(config, preset.hypers) for config in settings]
    found = common.rates({str(i): x.work for i, x in enumerate(all_of_them)}, effort)
    one = num_updates * found["0"].median
    rows = []
    for rate, ensemble in zip(found.values(), all_of_them, strict=True):
        config, updates = ensemble.config, num_updates * rate.median
        steps = ensemble.num_envs * config.segment_length
        rows.append(
            {
                "num_experts": config.num_experts,
                "observer": config.observer,
                "trunk": "shared" if config.shared_trunk else "own",
                "num_envs": ensemble.num_envs,
                "steps_per_second": updates * steps,
                "best_steps_per_second": num_updates * rate.high * steps,
                "update_seconds": 1 / updates,
                "best_update_seconds": 1 / (num_updates * rate.high),
                "times_one_expert": one / updates,
                "compile_seconds": ensemble.compile_seconds,
                "spread_update_seconds": [1 / (num_updates * x) for x in (rate.high, rate.low)],
            }
        )
    return rows


def draw(result: dict):
    """Steps a second of both, and what an update of an ensemble takes."""
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
    for trunk, colour in (("own", common.OURS), ("shared", common.COMPILED)):
        mine = [row for row in many[1:] if row["trunk"] == trunk]
        x, y = ([row[name] for row in mine] for name in ("num_experts", "times_one_expert"))
        right.loglog(x, y, "o-", base=2, color=colour, label=f"{trunk} trunk")
    sizes = sorted({row["num_experts"] for row in many[1:]})
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
    trunks: Sequence[bool] = (False, True),
    num_updates: int = UPDATES,
) -> dict:
    """Both parts."""
    return {
        "device": common.device(),
        "env": ENV,
        "repeats": repeats,
        "rows": [against_plain(num_envs, num_steps, repeats) for num_envs in ENVS],
        "ensembles": ensembles(sizes, trunks, num_updates, effort),
    }


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
    effort = dataclasses.replace(effort, repeats=repeats, budget=math.inf)
    with console.status("PPO by turns, then ensembles"):
        result = measure(steps, repeats, effort, EXPERTS[:2] if given.quick else EXPERTS)
    console.print(common.table_of(result["ensembles"], OF_ENSEMBLES, "Ensembles, by turns"))
    table = common.table_of(result["rows"], AGAINST_PLAIN, f"PPO on {ENV}, steps a second")
    common.publish(result, draw(result), table, given.out, console)


if __name__ == "__main__":
    main()
