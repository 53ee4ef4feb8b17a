"""Default training of many seeds: side by side by ``vmap``, or in processes of their own.

Side by side means on one device, or spread over the cores of a CPU as ``--devices`` does. Processes
run one after another, or as many at a time as there are cores. No compiled program is kept between
processes, so the seconds of each include imports and compiling.
"""

import json
import os
import subprocess
import sys
import time
from statistics import mean, median

from ape_jax.config import PGConfig, PGHypers, TrainConfig
from benchmarks import common

SEEDS = (1, 2, 4, 8, 16, 32, 64)
MANY = 10
"""Seeds of the comparison with separate runs."""
CHILD = "--child"


def vmapped(seeds: tuple[int, ...], config: TrainConfig, effort: common.Effort) -> list[dict]:
    """Updates a second over all seeds, compiling excluded; all sizes timed by turns."""
    ours = {str(count): common.Ours(config, seeds=count) for count in seeds}
    found = common.rates({name: x.work for name, x in ours.items()}, effort)
    rows = []
    for count in seeds:
        work, rate = ours[str(count)].chunk * count, found[str(count)]
        rows.append(
            {
                "seeds": count,
                "updates_per_second": rate.median * work,
                "compile_seconds": ours[str(count)].compile_seconds,
                "spread": [x * work for x in rate.as_json()],
            }
        )
    return rows


def train(seeds: int, config: TrainConfig, num_devices: int | None = None) -> dict[str, float]:
    """One whole training as the command line runs it: seconds of the first chunk and of the rest.

    The first chunk includes compiling. A number of devices divides a CPU, as ``--devices`` does.
    """
    from ape_jax.algorithms.task import make_task
    from ape_jax.training import devices as sharding
    from ape_jax.training.trainer import Trainer, seed_keys

    started = time.perf_counter()
    devices = sharding.start(num_devices)
    chunks = Trainer(make_task(config), devices=devices).chunks(seed_keys(0, seeds), PGHypers())
    first = next(chunks)
    after_first = time.perf_counter()
    num_done = first.num_done
    for chunk in chunks:
        num_done = chunk.num_done
    rest = time.perf_counter() - after_first
    return {
        "first_chunk_seconds": after_first - started,
        "updates_per_second": seeds * (num_done - first.num_done) / rest,
    }


def processes(
    count: int, seeds: int, num_updates: int, num_devices: int = 1
) -> tuple[float, list[dict[str, float]]]:
    """Fresh processes side by side, each training so many seeds: seconds until all are done."""
    command = [sys.executable, "-m", "benchmarks.seeds", CHILD]
    command += map(str, (seeds, num_updates, num_devices))
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    started = time.perf_counter()
    children = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(count)
    ]
    outputs = [child.communicate()[0] for child in children]
    seconds = time.perf_counter() - started
    if any(child.returncode for child in children):
        raise RuntimeError(f"a run in a process of its own failed: {' '.join(command)}")
    return seconds, [json.loads(output.splitlines()[-1]) for output in outputs]


def against_processes(num_updates: int, repeats: int) -> dict:
    """Ten seeds: vmapped in one process, in one process each after another, and side by side.

    The vmapped run is measured on one device, and on a CPU also on as many devices as cores.
    """
    cores = os.cpu_count() or 1
    places = 1 if common.on_gpu() else cores
    together, spread, alone, waves = [], [], [], []
    for _ in range(repeats):
        together.append(processes(1, MANY, num_updates))
        spread.append(processes(1, MANY, num_updates, places))
        alone.append(processes(1, 1, num_updates))
        waves.append(processes(cores, 1, num_updates))
    seconds, spread_seconds = (median(x for x, _ in runs) for runs in (together, spread))
    one_run = median(x for x, _ in alone)
    one_wave = median(x for x, _ in waves)

    def rate(runs: list[tuple[float, list[dict[str, float]]]]) -> float:
        return mean(sum(child["updates_per_second"] for child in children) for _, children in runs)

    return {
        "num_updates": num_updates,
        "seeds": MANY,
        "cores": cores,
        "vmapped_seconds": seconds,
        "vmapped_over_cores_seconds": spread_seconds,
        "one_run_seconds": one_run,
        "one_after_another_seconds": MANY * one_run,
        "side_by_side_seconds": MANY / cores * one_wave,
        "estimate": (
            f"one after another: the median of {repeats} fresh processes times {MANY}; side by "
            f"side: the median of {repeats} waves of {cores} processes times {MANY} / {cores}"
        ),
        "ratio_one_after_another": MANY * one_run / seconds,
        "ratio_side_by_side": MANY / cores * one_wave / seconds,
        "ratio_over_cores": seconds / spread_seconds,
        "vmapped_updates_per_second": rate(together),
        "vmapped_over_cores_updates_per_second": rate(spread),
        "one_run_updates_per_second": rate(alone),
        "side_by_side_updates_per_second": rate(waves),
        "spread_vmapped_seconds": [min(x for x, _ in together), max(x for x, _ in together)],
        "spread_one_run_seconds": [min(x for x, _ in alone), max(x for x, _ in alone)],
    }


def draw(result: dict):
    """Updates a second over seeds, and seconds of ten runs."""
    figure, (left, right) = common.axes_of(2)
    rows, ten = result["rows"], result["ten_seeds"]
    left.plot(
        [row["seeds"] for row in rows],
        [row["updates_per_second"] for row in rows],
        marker="o",
        color=common.OURS,
        label="vmapped",
    )
    for name, style in (("side_by_side", "--"), ("one_run", ":")):
        rate = ten[f"{name}_updates_per_second"]
        left.axhline(
            rate, ls=style, color=common.EAGER, label=f"processes, {name}".replace("_", " ")
        )
    left.set_xscale("log", base=2)
    left.set_ylim(bottom=0)
    left.set_xlabel("seeds")
    left.set_ylabel("updates a second, all seeds")
    left.legend()
    labels = ["vmapped", "vmapped over cores", "side by side", "one after another"]
    seconds = [ten[f"{label.replace(' ', '_')}_seconds"] for label in labels]
    right.barh(labels, seconds, color=[common.OURS, common.OURS, common.EAGER, common.EAGER])
    right.invert_yaxis()
    right.set_xlabel(f"seconds of ten runs of {ten['num_updates']} updates")
    return figure


def measure(
    seeds: tuple[int, ...], config: TrainConfig, effort: common.Effort, repeats: int
) -> dict:
    """The curve over seeds, and ten seeds against processes."""
    return {
        "device": common.device(),
        "rows": vmapped(seeds, config, effort),
        "ten_seeds": against_processes(config.num_updates, repeats),
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure, write, print; or be one of the processes."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == [CHILD]:
        count, num_updates, num_devices = map(int, arguments[1:])
        print(json.dumps(train(count, PGConfig(num_updates=num_updates), num_devices)))
        return
    out, effort, console = common.options(__doc__, arguments)
    full = effort == common.FULL
    config = PGConfig() if full else PGConfig(num_updates=100)
    with console.status("vmapped, then in processes"):
        result = measure(SEEDS if full else SEEDS[:2], config, effort, 2 if full else 1)
    columns = {
        "seeds": "seeds",
        "updates / s": "updates_per_second",
        "compile s": "compile_seconds",
    }
    table = common.table_of(result["rows"], columns, "Seeds side by side")
    common.publish(result, draw(result), table, out, console)
    ten = result["ten_seeds"]
    console.print(
        f"ten seeds: {ten['ratio_one_after_another']:.1f} x as fast as ten runs one after another, "
        f"{ten['ratio_side_by_side']:.1f} x as fast as on all cores; "
        f"{ten['ratio_over_cores']:.1f} x faster still with the seeds spread over the cores"
    )


if __name__ == "__main__":
    main()
