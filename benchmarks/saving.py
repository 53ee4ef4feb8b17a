"""The cost of checkpoints: the default training with and without them, in turns in one process.

It measures the seconds of the training loop, which is compiled before. They include the time until
the last checkpoint is written.
"""

import resource
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median

from ape_jax.algorithms.task import make_task
from ape_jax.config import PGConfig, RunConfig
from ape_jax.runs.callbacks import Callback
from ape_jax.runs.directory import Output, RunDirectory
from ape_jax.runs.loop import fit
from ape_jax.training.trainer import Chunk, Trainer, seed_keys
from benchmarks import common

SETTINGS = {"as it comes": None, "every 1000 updates": 1000, "every 50 updates": 50}


def chunks_of(trainer: Trainer, config: RunConfig) -> Iterable[Chunk]:
    """A training from its beginning."""
    keys = seed_keys(config.first_seed, config.seeds)
    return trainer.chunks(keys, config.hypers, chunk=config.chunk)


def seconds_of(trainer: Trainer, config: RunConfig, what: str) -> float:
    """Seconds of a training that keeps nothing, its metrics alone, or checkpoints too."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        if what == "nothing kept":
            for _ in chunks_of(trainer, config):
                pass
        else:
            with RunDirectory.open(Output(Path(folder)), config, trainer.task) as run:
                if what == "metrics alone":
                    for chunk in chunks_of(trainer, config):
                        run.append(chunk)
                else:
                    fit(chunks_of(trainer, config), run)
        return time.perf_counter() - started


class Peaks(Callback):
    """Notes after each chunk how much memory the process has ever held, in MiB."""

    def __init__(self):
        """Note nothing yet."""
        self.mebibytes: list[float] = []

    def __call__(self, chunk: Chunk) -> None:
        """Note the peak."""
        self.mebibytes.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def growth(num_updates: int) -> dict:
    """Peak of memory, in MiB, after a twentieth of a long run and after all of it."""
    config = RunConfig(
        PGConfig(num_updates=num_updates, envs_per_expert=16), save_every=num_updates // 20
    )
    trainer, peaks = Trainer(make_task(config.train)), Peaks()
    with (
        tempfile.TemporaryDirectory() as folder,
        RunDirectory.open(Output(Path(folder)), config, trainer.task) as run,
    ):
        fit(chunks_of(trainer, config), run, [peaks])
    return {
        "num_updates": num_updates,
        "first_mebibytes": peaks.mebibytes[len(peaks.mebibytes) // 20],
        "last_mebibytes": peaks.mebibytes[-1],
    }


def measure(config: PGConfig, repeats: int) -> dict:
    """All settings in turns: medians, and the share that saving adds to writing metrics alone."""
    trainer = Trainer(make_task(config))
    settings = {name: RunConfig(config, save_every=every) for name, every in SETTINGS.items()}
    seconds_of(trainer, settings["as it comes"], "as it comes")
    found: dict[str, list[float]] = {}
    for _ in range(repeats):
        for name, run in settings.items():
            for what in ("nothing kept", "metrics alone", name):
                found.setdefault(what, []).append(seconds_of(trainer, run, what))
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
