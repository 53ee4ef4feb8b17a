"""What checkpoints cost: the default training with and without, by turns in one process.

Seconds of the training loop, compiled beforehand; the last checkpoint's writing is awaited.
"""

import resource
import tempfile
import time
from pathlib import Path
from statistics import median

import jax
from rich.console import Console

from ape_jax.algorithms.task import make_task
from ape_jax.config import PGConfig, RunConfig, TrainConfig
from ape_jax.runs.checkpoint import Saver
from ape_jax.runs.directory import RunDirectory
from ape_jax.runs.loop import Watching, train
from ape_jax.training.trainer import Trainer, seed_keys
from benchmarks import common

SETTINGS = {"as it comes": None, "every 1000 updates": 1000, "every 50 updates": 50}


def bare(runner: Trainer, config: RunConfig) -> float:
    """Seconds of the same chunks, of which nothing is kept."""
    started = time.perf_counter()
    for chunk in runner.chunks(seed_keys(0, config.seeds), config.hypers, chunk=config.chunk):
        jax.block_until_ready(chunk.state)
    return time.perf_counter() - started


def saved(runner: Trainer, config: RunConfig, keep: int | None) -> float:
    """Seconds of a training that writes metrics, and checkpoints where ``keep`` says how many."""
    with tempfile.TemporaryDirectory() as folder:
        directory = RunDirectory(Path(folder))
        saver = Saver(Path(folder), config, keep or 1)
        if keep is None:
            saver.save = lambda *arguments: None  # type: ignore[method-assign]
        started = time.perf_counter()
        watching = Watching(Console(quiet=True), quiet=True)
        train(runner, config, directory, saver, watching, resume=False)
        saver.wait()
        seconds = time.perf_counter() - started
        directory.release()
    return seconds


class Peaks(Saver):
    """Saves, and notes how much memory the process has ever held at each checkpoint."""

    def __init__(self, *arguments):
        """Note nothing yet."""
        super().__init__(*arguments)
        self.megabytes: list[float] = []

    def save(self, *arguments) -> None:
        """As any saver."""
        super().save(*arguments)
        self.megabytes.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def growth(num_updates: int) -> dict:
    """Peak of memory, in MiB, after a twentieth of a long run and after all of it."""
    config = RunConfig(
        PGConfig(num_updates=num_updates, envs_per_expert=16), save_every=num_updates // 20
    )
    with tempfile.TemporaryDirectory() as folder:
        saver = Peaks(Path(folder), config, 3)
        directory = RunDirectory(Path(folder))
        watching = Watching(Console(quiet=True), quiet=True)
        train(Trainer(make_task(config.train)), config, directory, saver, watching, resume=False)
        saver.wait()
        directory.release()
    return {
        "num_updates": num_updates,
        "first_mebibytes": saver.megabytes[0],
        "last_mebibytes": saver.megabytes[-1],
    }


def measure(config: TrainConfig, repeats: int) -> dict:
    """All settings by turns; medians, and the share that saving adds to writing metrics alone."""
    runner = Trainer(make_task(config))
    settings = {name: RunConfig(config, save_every=every) for name, every in SETTINGS.items()}
    saved(runner, next(iter(settings.values())), 3)
    found: dict[str, list[float]] = {}
    for _ in range(repeats):
        for name, run in settings.items():
            found.setdefault("nothing kept", []).append(bare(runner, run))
            found.setdefault("metrics alone", []).append(saved(runner, run, None))
            found.setdefault(name, []).append(saved(runner, run, 3))
    without = median(found["metrics alone"])
    return {
        "device": common.device(),
        "num_updates": config.num_updates,
        "rows": [
            {
                "saving": name,
                "seconds": median(seconds),
                "spread": [min(seconds), max(seconds)],
                "share": median(seconds) / without - 1.0,
            }
            for name, seconds in found.items()
        ],
    }


def draw(result: dict):
    """Seconds of every setting."""
    figure, (panel,) = common.axes_of(1)
    names = [row["saving"] for row in result["rows"]]
    panel.barh(names, [row["seconds"] for row in result["rows"]], color=common.OURS)
    panel.invert_yaxis()
    panel.set_xlabel(f"seconds of {result['num_updates']} updates")
    return figure


def main(arguments: list[str] | None = None) -> None:
    """Measure, write, print."""
    out, effort, console = common.options(__doc__, arguments)
    full = effort == common.FULL
    config = PGConfig() if full else PGConfig(num_updates=200)
    with console.status("training"):
        result = measure(config, 5 if full else 1)
        result["memory"] = growth(20_000 if full else 1_000)
    columns = {"saving": "saving", "seconds": "seconds", "share": "share"}
    table = common.table_of(result["rows"], columns, "What checkpoints cost")
    common.publish(result, draw(result), table, out, console)
    memory = result["memory"]
    console.print(
        f"memory of a run of {memory['num_updates']} updates: {memory['first_mebibytes']:.0f} MiB "
        f"after a twentieth, {memory['last_mebibytes']:.0f} MiB at the end"
    )


if __name__ == "__main__":
    main()
