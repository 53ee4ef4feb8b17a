"""Updates a second of training, against PyTorch and against the environments alone.

On a GPU it also measures how training scales with seeds side by side. Columns of a contestant that
is not run are null:

- both PyTorch versions where PyTorch is not installed;
- the eager version where one of its arrays would take more than ``EAGER_BYTES``;
- the compiled version, which compiles for long, except for two experts with 64 or 1024 environments
  each, and always with ``--quick``.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

from ape_jax.config import PGConfig, PGHypers, TrainConfig
from benchmarks import common
from benchmarks.ceiling import Stepping, steps_an_update

HEADS = ("tabular", "mlp")
SIZES = [(2, 64), (2, 1024), (2, 16384), (8, 64), (32, 64)]
COMPILED_SIZES = [(2, 64), (2, 1024)]
STEPS_PER_GRAPH = 20
"""Steps in one graph of the compiled version, on a CPU. Longer graphs compile for minutes."""
AT_REST = PGHypers(learning_rate=1e-30, critic_learning_rate=1e-30)
"""Rates at which policies stay as they are drawn, and episodes stay long."""
EAGER_BYTES = 2e8
"""Largest array of the eager version, in bytes. An update holds about five arrays of this size."""
COLUMNS = {
    "head": "head",
    "E": "num_experts",
    "B": "envs_per_expert",
    "ours": "ours_updates_per_second",
    "eager": "torch_eager_updates_per_second",
    "compiled": "torch_compiled_updates_per_second",
    "ours / eager": "ratio_eager",
    "ours / compiled": "ratio_compiled",
    "steps": "steps_per_second",
    "live steps": "live_steps_per_second",
    "ceiling": "ceiling_live_steps_per_second",
}
SEEDS = [(2**power, block) for block in (64, 256) for power in range(0, 11, 2)]
"""Seeds, and environments an expert, with which scaling is measured on a GPU."""


def measure(
    config: TrainConfig, effort: common.Effort, with_eager: bool, with_compiled: bool
) -> dict:
    """One row: ours, PyTorch and the ceiling, timed by turns.

    Where episodes end early, an update costs less the longer a training has been. Ours and compiled
    PyTorch therefore train for equally many updates before they are timed, and both are timed a
    second time with rates so small that they stay untrained.
    """
    counts = common.thread_counts()
    with_threads = {n: common.Ours(config, threads=n) for n in counts}
    at_rest = {n: common.Ours(config, AT_REST, threads=n) for n in counts}
    for ours in with_threads.values():
        ours.train_first()
    stepping = Stepping(config, with_threads[1].state().params.heads)
    contestants = {"ceiling": stepping.work}
    contestants |= {f"ours {n}": x.work for n, x in with_threads.items()}
    contestants |= {f"untrained ours {n}": x.work for n, x in at_rest.items()}
    compile_seconds, trainers = None, {}
    if with_eager or with_compiled:
        trainers, compile_seconds = torch_trainers(config, with_eager, with_compiled)
        contestants |= {name: functools.partial(work, x) for name, x in trainers.items()}
    found = common.rates(contestants, effort)
    rate, threads = better(found, "ours")
    rate_at_rest, threads_at_rest = better(found, "untrained ours")
    ours, idle = with_threads[threads], at_rest[threads_at_rest]
    updates, untrained = rate.median * ours.chunk, rate_at_rest.median * idle.chunk
    eager, eager_threads = better(found, "eager")
    compiled, compiled_threads = better(found, "compiled")
    still, still_threads = better(found, "untrained compiled")
    steps = steps_an_update(config)
    return {
        "head": config.head,
        "num_experts": config.num_experts,
        "envs_per_expert": config.envs_per_expert,
        "torch_version": common.torch_version(),
        "updates_before": common.updates_before(config),
        "ours_updates_per_second": updates,
        "torch_eager_updates_per_second": eager and eager.median,
        "torch_compiled_updates_per_second": compiled and compiled.median,
        "ratio_eager": eager and updates / eager.median,
        "ratio_compiled": compiled and updates / compiled.median,
        "steps_per_second": updates * steps,
        "live_steps_per_second": updates * ours.live_steps(),
        "torch_compiled_live_steps_per_second": compiled
        and compiled.median * trainers[f"compiled {compiled_threads}"][0].live_steps(),
        "ceiling_steps_per_second": found["ceiling"].median * stepping.steps,
        "ceiling_live_steps_per_second": found["ceiling"].median * stepping.live_steps,
        "untrained": {
            "ours_updates_per_second": untrained,
            "torch_compiled_updates_per_second": still and still.median,
            "ratio_compiled": still and untrained / still.median,
            "steps_per_second": untrained * steps,
            "live_steps_per_second": untrained * idle.live_steps(),
            "torch_compiled_threads": still_threads,
            "ours_threads": threads_at_rest,
            "ours_spread": [x * idle.chunk for x in rate_at_rest.as_json()],
            "torch_compiled_spread": still and still.as_json(),
        },
        "ours_compile_seconds": ours.compile_seconds,
        "torch_compile_seconds": compile_seconds,
        "ours_threads": threads,
        "torch_eager_threads": eager_threads,
        "torch_compiled_threads": compiled_threads,
        "ours_spread": [x * ours.chunk for x in rate.as_json()],
        "torch_eager_spread": eager and eager.as_json(),
        "torch_compiled_spread": compiled and compiled.as_json(),
    }


def eager_fits(config: TrainConfig) -> bool:
    """Whether the hidden units of all heads at all steps of the observer fit in ``EAGER_BYTES``."""
    width = config.hidden_sizes[0] if config.head == "mlp" else 5
    observer_steps = steps_an_update(config) // 2
    return 4 * config.num_experts * observer_steps * width <= EAGER_BYTES


def better(
    found: dict[str, common.Rate], version: str
) -> tuple[common.Rate, int] | tuple[None, None]:
    """The rate of a version with the better number of threads, and that number."""
    mine = [
        (rate, int(x.removeprefix(version)))
        for x, rate in found.items()
        if x.startswith(f"{version} ")
    ]
    return max(mine, key=lambda pair: pair[0].median) if mine else (None, None)


def torch_trainers(
    config: TrainConfig, with_eager: bool, with_compiled: bool
) -> tuple[dict[str, tuple[Any, int]], float | None]:
    """PyTorch's trainers with one thread and with all threads; and the seconds of compiling one.

    Only the compiled version trains first: the eager one pads all episodes, so that its updates
    cost the same at any time.
    """
    import torch

    from benchmarks.torch_ape import compiled, eager

    where = "cuda" if common.on_gpu() else "cpu"
    if where == "cuda":
        torch.set_float32_matmul_precision("high")
    # Compiling is timed, so nothing may be taken from earlier runs.
    torch.compiler.reset()
    torch.compiler.config.force_disable_caches = True
    compiled.STEPS_PER_GRAPH = 100 if where == "cuda" else STEPS_PER_GRAPH

    trainers: dict[str, tuple[Any, int]] = {}
    compile_seconds = None
    for threads in common.thread_counts():
        if with_eager:
            trainers[f"eager {threads}"] = eager.Trainer(config, PGHypers(), where), threads
        if with_compiled:
            trained = compiled.Trainer(config, PGHypers(), where), threads
            started = time.perf_counter()
            # On a GPU the first updates also record what the later ones replay.
            work(trained, compiled.WARM_UPS + 1 if where == "cuda" else 1)
            compile_seconds = compile_seconds or time.perf_counter() - started
            work(trained, common.updates_before(config))
            trainers[f"compiled {threads}"] = trained
            idle = compiled.Trainer(config, AT_REST, where), threads
            trainers[f"untrained compiled {threads}"] = idle
    return trainers, compile_seconds


def work(trained: tuple[Any, int], count: int) -> None:
    """Updates of a trainer with a number of threads."""
    import torch

    trainer, threads = trained
    torch.set_num_threads(threads)
    for _ in range(count):
        trainer.update()
    if common.on_gpu():
        torch.cuda.synchronize()


def scaling(sizes: Sequence[tuple[int, int]], effort: common.Effort, track: Callable) -> list[dict]:
    """Environment steps a second of all seeds, for training vmapped over seeds; tabular heads."""
    rows = []
    for count, block in track(sizes, "seeds"):
        config = PGConfig(envs_per_expert=block)
        ours = common.Ours(config, seeds=count)
        ours.train_first()
        rate = common.rates({"ours": ours.work}, effort)["ours"]
        steps = ours.chunk * count * steps_an_update(config)
        rows.append(
            {
                "seeds": count,
                "envs_per_expert": block,
                "steps_per_second": rate.median * steps,
                "live_steps_per_second": rate.median * ours.chunk * ours.live_steps(),
                "spread": [x * steps for x in rate.as_json()],
            }
        )
    return rows


def draw(rows: list[dict], seeds: Sequence[dict] = ()):
    """Environment steps a second over environments, a panel for each head; and over seeds."""
    heads = [head for head in HEADS if any(row["head"] == head for row in rows)]
    figure, panels = common.axes_of(len(heads) + bool(seeds))
    for panel, head in zip(panels, heads, strict=False):
        mine = [row for row in rows if row["head"] == head and row["num_experts"] == 2]
        lines = {
            "environments alone": ("ceiling_live_steps_per_second", common.CEILING, "--"),
            "ape_jax": ("ours_updates_per_second", common.OURS, "-"),
            "PyTorch, compiled": ("torch_compiled_updates_per_second", common.COMPILED, "-"),
            "PyTorch, eager": ("torch_eager_updates_per_second", common.EAGER, "-"),
        }
        for label, (name, colour, style) in lines.items():
            shown = [row for row in mine if row[name] is not None]
            blocks = [row["envs_per_expert"] for row in shown]
            rates = [in_steps(row, name) for row in shown]
            if shown:
                panel.loglog(blocks, rates, style, color=colour, marker="o", label=label)
        panel.set_xlabel("environments an expert")
        panel.set_title(f"{head} heads, two experts")
        panel.legend()
    panels[0].set_ylabel("live environment steps a second")
    for block in sorted({row["envs_per_expert"] for row in seeds}):
        mine = [row for row in seeds if row["envs_per_expert"] == block]
        steps = [row["steps_per_second"] for row in mine]
        label = f"{block} environments an expert"
        panels[-1].loglog([row["seeds"] for row in mine], steps, "o-", label=label)
        panels[-1].set_xlabel("seeds side by side")
        panels[-1].legend()
    return figure


def in_steps(row: dict, name: str) -> float:
    """A column in live environment steps a second, whether it is in updates or in steps."""
    an_update = row["live_steps_per_second"] / row["ours_updates_per_second"]
    return row[name] * an_update if "updates" in name else row[name]


def main(arguments: list[str] | None = None) -> None:
    """Measure, write, print."""
    out, effort, console = common.options(__doc__, arguments)
    full = effort == common.FULL
    if not common.has_torch():
        console.print('PyTorch is not installed: its columns stay empty. pip install ".[bench]"')
    grid = [(head, *size) for size in (SIZES if full else SIZES[:1]) for head in HEADS]
    rows: list[dict] = []
    for head, experts, block in common.track(grid, "throughput", console):
        config = PGConfig(head=head, num_experts=experts, envs_per_expert=block)
        with_compiled = full and (experts, block) in COMPILED_SIZES and common.has_torch()
        with_eager = common.has_torch() and eager_fits(config)
        rows.append(measure(config, effort, with_eager, with_compiled))
        result = {"device": common.device(), "quick": not full, "rows": rows}
        common.write(result, out)
    if common.on_gpu():
        track = functools.partial(common.track, console=console)
        result["seeds"] = scaling(SEEDS if full else SEEDS[:2], effort, track)
    table = common.table_of(rows, COLUMNS, "Updates and environment steps a second")
    common.publish(result, draw(rows, result.get("seeds", ())), table, out, console)


if __name__ == "__main__":
    main()
