"""``ape-jax train``: train an ensemble, save it, evaluate it; and resume a run that was stopped."""

import dataclasses
import logging
import shlex
import time
from collections.abc import Iterator

import jax
from rich.console import Console

from ape_jax.algorithms.task import Task, check_min_return, make_task
from ape_jax.cli.output import prepare, say
from ape_jax.cli.train_options import TrainOptions, Watch, unpack
from ape_jax.config import RunConfig
from ape_jax.evaluation import records
from ape_jax.evaluation.intervals import MeanStd
from ape_jax.evaluation.summary import Summary, summarise
from ape_jax.reporting import tables
from ape_jax.runs import trackers
from ape_jax.runs.callbacks import Callback, FiniteGuard, LiveView
from ape_jax.runs.directory import RunDirectory, Start, find_start, is_finished
from ape_jax.runs.loop import Interrupted, fit, stop_requested
from ape_jax.runs.output import Output
from ape_jax.training import devices
from ape_jax.training.place import Place
from ape_jax.training.trainer import Chunk, Trainer, seed_keys
from ape_jax.types import RunError


def run(options: TrainOptions, console: Console) -> int:
    """Train, save and evaluate."""
    config, place, output, watch = unpack(options)
    trackers.check(watch.tensorboard, watch.wandb)
    if output.resume and is_finished(output.path):
        say(Console(), f"{output.path} is finished, after {config.train.num_updates} updates")
        return 0
    if watch.quiet:
        logging.getLogger("ape_jax").setLevel("WARNING")
    chosen = devices.start(*place)
    devices.make_mesh(config.train, config.seeds, chosen)
    task = make_task(config.train)
    check_min_return(task, config.hypers)
    trainer = Trainer(task, devices=chosen)
    if jax.process_index() > 0:
        _take_part(trainer, config, output)
        return 0
    prepare(output.path)
    try:
        with RunDirectory.open(output, config, task) as directory:
            callbacks = _callbacks(watch, directory, console, task)
            try:
                summary = _train_and_evaluate(trainer, directory, place, callbacks)
            except Interrupted as stop:
                how = _how_to_continue(directory, output, watch)  # A command that can be copied.
                console.print(how, markup=False, highlight=False, soft_wrap=True)
                return stop.exit_code
    except OSError as error:
        fix = f"Make room, then: {_resume_command(output, watch)}"
        raise RunError(f"{output.path} cannot be written ({error}). {fix}") from None
    _show(summary, config, output)
    return 0


def _train_and_evaluate(
    trainer: Trainer, run: RunDirectory, place: Place, callbacks: list[Callback]
) -> Summary:
    """Train to the end, and write and return the summary."""
    config, task, start = run.config, trainer.task, run.start
    started = time.monotonic()
    state = fit(_chunks(trainer, config, start), run, callbacks)
    seconds = time.monotonic() - started
    with stop_requested():
        params, multipliers = jax.device_get((state.params, state.multipliers))
        run.save_params(params)
        if place.cluster is not None:
            devices.leave()
            task = make_task(config.train)
        summary = dataclasses.replace(
            summarise(task, config, params),
            train_seconds=seconds,
            multipliers=None if multipliers is None else MeanStd.over_seeds(multipliers),
        )
        run.finish(records.to_json(summary))
    return summary


def _callbacks(watch: Watch, run: RunDirectory, console: Console, task: Task) -> list[Callback]:
    """List what is called with every chunk. The guard is the first to see it."""
    called: list[Callback] = [FiniteGuard(run)]
    if not watch.quiet:
        called.append(LiveView(task, run.config.seeds, run.start.num_done, console))
    if watch.tensorboard:
        called.append(trackers.tensorboard(run))
    if watch.wandb is not None:
        called.append(trackers.weights_and_biases(run, watch.wandb))
    return called


def _take_part(trainer: Trainer, config: RunConfig, output: Output) -> None:
    """Compute the same training as process 0, which alone writes the run."""
    start = find_start(output.path, config, trainer.task)[0] if output.resume else Start()
    for _ in _chunks(trainer, config, start):
        pass
    devices.leave()


def _chunks(trainer: Trainer, config: RunConfig, start: Start) -> Iterator[Chunk]:
    keys = seed_keys(config.first_seed, config.seeds)
    return trainer.chunks(keys, config.hypers, start.state, start.num_done, config.chunk)


def _how_to_continue(run: RunDirectory, output: Output, watch: Watch) -> str:
    done = "before anything was finished"
    if run.num_done:
        done = f"after {run.num_done} of {run.config.train.num_updates} updates"
    elif output.overwrite:  # The directory may still hold the old run.
        return f"interrupted {done}"
    return f"interrupted {done}; continue with: {_resume_command(output, watch)}"


def _resume_command(output: Output, watch: Watch) -> str:
    """The command that continues a run, with those options that the run does not store."""
    flags = ["--resume", str(output.path)]
    if output.keep != Output.keep:
        flags += ["--keep", str(output.keep)]
    if watch.tensorboard:
        flags += ["--tensorboard"]
    if watch.wandb is not None:
        flags += ["--wandb", watch.wandb]
    return f"ape-jax train {shlex.join(flags)}"


def _show(summary: Summary, config: RunConfig, output: Output) -> None:
    """Print what the evaluation found."""
    console = Console()
    by_expert = summary.expert_returns.array.T
    returns = {"ensemble (PE)": summary.pe_return}
    returns |= {f"expert {i + 1}": MeanStd.over_seeds(x) for i, x in enumerate(by_expert)}
    returns["uniform mixture π_o"] = summary.mixture
    lines = [[name, tables.mean_and_std(found)] for name, found in returns.items()]
    title = f"{config.train.env} after {summary.num_updates} updates, mean ± std over "
    header = ["who acts", "return of an episode"]
    console.print(tables.rich_table(f"{title}{config.seeds} seed(s)", header, lines))
    min_return = config.hypers.min_return
    if min_return is not None:
        kept = [
            f"expert {index + 1} in {sum(value >= min_return for value in values)} of "
            f"{len(values)} seed(s), lowest {min(values):.2f}"
            for index, values in enumerate(by_expert)
        ]
        say(console, f"return of at least {min_return:g} kept by " + "; ".join(kept))
    for index, count in enumerate(map(sum, zip(*summary.dead_experts, strict=True))):
        if count:
            found = f"expert {index + 1} collapsed in {count} of {config.seeds} seed(s)"
            why = "above a random policy, it returns less than half of what the best expert does"
            say(console, f"{found}: {why}")
    say(console, f"evaluation: {summary.evaluation}; run saved in {output.path}")
