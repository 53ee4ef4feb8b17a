"""Code that all benchmarks use: options, timing, our own contestant, machine, files, figures."""

import argparse
import dataclasses
import importlib.util
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ape_jax import algorithms
from ape_jax.algorithms import pg
from ape_jax.algorithms.task import Task, make_task
from ape_jax.config import Hypers, PGHypers, TrainConfig

OURS, EAGER, COMPILED, CEILING = "#1f5fa8", "#c8442d", "#e2a13c", "#777777"
"""Colours of the contestants, the same in every figure."""

Contestant = Callable[[int], None]
"""Does its work a given number of times, and returns when all is finished."""


@dataclasses.dataclass(frozen=True)
class Effort:
    """Duration of the measurements."""

    repeats: int
    """Rounds; in each, every contestant is timed once."""
    seconds: float
    """A contestant works at least this long a round."""
    budget: float
    """After this many seconds a contestant leaves, once it has been timed twice."""


FULL = Effort(repeats=5, seconds=0.5, budget=8.0)
QUICK = Effort(repeats=2, seconds=0.1, budget=5.0)


@dataclasses.dataclass(frozen=True)
class Rate:
    """Pieces of work a second, over the rounds."""

    median: float
    low: float
    high: float

    def as_json(self) -> list[float]:
        """The slowest and the fastest round."""
        return [self.low, self.high]


def rates(contestants: Mapping[str, Contestant], effort: Effort) -> dict[str, Rate]:
    """Time all contestants in one process by turns, so that other load hits all of them alike.

    One piece of work warms a contestant up. The time of its second piece decides how many pieces it
    does in a round.
    """
    counts = {}
    for name, contestant in contestants.items():
        contestant(1)
        counts[name] = max(1, round(effort.seconds / _seconds(contestant, 1)))
    found: dict[str, list[float]] = {name: [] for name in contestants}
    spent = dict.fromkeys(contestants, 0.0)
    for repeat in range(effort.repeats):
        for name, contestant in contestants.items():
            if repeat < 2 or spent[name] < effort.budget:
                seconds = _seconds(contestant, counts[name])
                spent[name] += seconds
                found[name].append(counts[name] / seconds)
    return {name: Rate(median(x), min(x), max(x)) for name, x in found.items()}


def _seconds(contestant: Contestant, count: int) -> float:
    started = time.perf_counter()
    contestant(count)
    return time.perf_counter() - started


def repeated(function: Callable[..., Any], *arguments) -> Contestant:
    """Calls of a jitted function on the same arguments, dispatched ahead and awaited together."""

    def work(count: int) -> None:
        for _ in range(count):
            results = function(*arguments)
        jax.block_until_ready(results)

    return work


class Ours:
    """Training with ``ape_jax``: chunks of updates from an untrained start, the state donated."""

    def __init__(
        self,
        config: TrainConfig,
        hypers: Hypers | None = None,
        seeds: int | None = None,
        threads: int | None = None,
    ):
        """Compile.

        Args:
          config: static settings.
          hypers: numbers; the defaults if None.
          seeds: runs trained side by side by ``vmap``; None is one run without.
          threads: of an operation on a CPU, one or None, which leaves it to XLA.
        """
        hypers = PGHypers() if hypers is None else hypers
        task = make_task(config)
        create, updates = pg.create_state, algorithms.updates
        keys = jax.random.key(0)
        if seeds is not None:
            keys = jax.random.split(keys, seeds)
            create = jax.vmap(create, (0, None, None))
            updates = jax.vmap(updates, (None, 0, None, None))
        state = jax.jit(create, static_argnums=1)(keys, task.networks, hypers)
        episodes = 2 * config.num_experts * config.envs_per_expert * (seeds or 1)
        self.chunk = min(50, max(2, 16384 // episodes))
        """Updates in one program."""
        started = time.perf_counter()
        options = {"xla_cpu_multi_thread_eigen": False} if threads == 1 else None
        program = compiled_chunk(updates, task, state, hypers, self.chunk, options)
        self.compile_seconds = time.perf_counter() - started
        self._run = lambda leaves: program(leaves, hypers)
        self._leaves, self._tree = jax.tree.flatten(state)
        self.config, self._seeds, self.metrics = config, seeds or 1, None

    def train_first(self) -> None:
        """Train for the updates that come before timing."""
        self.work(-(-updates_before(self.config) // self.chunk))

    def work(self, count: int) -> None:
        """Train for a number of chunks."""
        for _ in range(count):
            self._leaves, self.metrics = self._run(self._leaves)
        jax.block_until_ready((self._leaves, self.metrics))

    def state(self) -> algorithms.TrainState:
        """A copy of the state reached."""
        return self._tree.unflatten([jnp.copy(x) for x in self._leaves])

    def live_steps(self) -> float:
        """Live environment steps of an update of all seeds, on average over the last chunk."""
        return self._seeds * float(jnp.mean(self.metrics.live_steps))


def live_steps(config: TrainConfig, pe_return: float, observer_return: float) -> float:
    """Steps of an update before the ends of episodes, on the gridworld, where each step costs 1."""
    return -config.num_experts * config.envs_per_expert * (pe_return + observer_return)


def updates_before(config: TrainConfig) -> int:
    """Updates that a contestant trains before it is timed, after which experts find the goal."""
    return max(150, 64_000 // config.envs_per_expert)


def compiled_chunk(
    updates: Callable,
    task: Task,
    state: algorithms.TrainState,
    hypers: Hypers,
    count: int,
    compiler_options: dict | None = None,
) -> jax.stages.Compiled:
    """A compiled program of several updates, from the leaves of a state, which are donated."""
    tree = jax.tree.structure(state)

    def run(leaves, hypers):
        state, metrics = updates(task, tree.unflatten(leaves), hypers, count)
        return jax.tree.leaves(state), metrics

    lowered = jax.jit(run, donate_argnums=0).lower(jax.tree.leaves(state), hypers)
    return lowered.compile(compiler_options)


def torch_version() -> str | None:
    """The version of PyTorch; None where it is not installed."""
    return metadata.version("torch") if has_torch() else None


def thread_counts() -> list[int]:
    """The numbers of threads that each side is timed with: one and all, or one on a GPU."""
    return [1] if on_gpu() else sorted({1, os.cpu_count() or 1})


def has_torch() -> bool:
    """Whether PyTorch is installed."""
    return importlib.util.find_spec("torch") is not None


def on_gpu() -> bool:
    """Whether JAX computes on a GPU."""
    return jax.devices()[0].platform == "gpu"


def device() -> str:
    """The machine and the libraries, in one line."""
    parts = [jax.devices()[0].device_kind] if on_gpu() else []
    parts.append(f"{_processor()}, {os.cpu_count()} cores")
    names = ["jax", "jaxlib", *(["torch"] if has_torch() else [])]
    parts += [f"{name} {metadata.version(name)}" for name in names]
    return "; ".join([*parts, f"Python {platform.python_version()}"])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(x.split(":")[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def options(
    description: str | None, arguments: Sequence[str] | None = None
) -> tuple[Path, Effort, Console]:
    """Read ``--quick`` and ``--out``."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a first look, in a minute or so")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="JSON; a PNG is put beside it"
    )
    given = parser.parse_args(arguments)
    return given.out, QUICK if given.quick else FULL, Console()


def track(items: Iterable, description: str, console: Console) -> Iterable:
    """Yield the items, with a progress bar."""
    items = list(items)
    with Progress(console=console, transient=True) as progress:
        yield from progress.track(items, description=description)


def write(result: dict, out: Path) -> None:
    """Write the JSON. Long benchmarks do this after every row, so that no row is lost."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def publish(result: dict, figure: Figure, table: Table, out: Path, console: Console) -> None:
    """Write the JSON and the figure beside it, and print the table."""
    write(result, out)
    picture = out.with_suffix(".png")
    figure.savefig(picture, dpi=150)
    console.print(table)
    console.print(f"{result['device']}\nwrote {out} and {picture}", highlight=False)


def table_of(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], title: str) -> Table:
    """A table of some columns, by their headings; what was not measured is a dash."""
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*(_short(row[name]) for name in columns.values()))
    return table


def _short(value: Any) -> str:
    if value is None:
        return "–"
    if not isinstance(value, float):
        return str(value)
    if value >= 1e6:
        return f"{value / 1e6:,.1f} M"
    return f"{value:,.0f}" if value >= 1e3 else f"{value:.3g}"


def axes_of(columns: int = 1, height: float = 3.4) -> tuple[Figure, list]:
    """A figure with panels side by side, in the style of all benchmarks."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt  # After the choice of a backend that needs no screen.

    figure, panels = plt.subplots(
        1, columns, figsize=(4.6 * columns, height), layout="constrained", squeeze=False
    )
    for panel in panels[0]:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
    return figure, list(panels[0])
