"""``ape-jax train``: train, save, evaluate; and go on with a run that was stopped."""

import dataclasses
import logging
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import jax
import tyro
from rich.console import Console

from ape_jax import presets
from ape_jax.algorithms.task import Task, check_min_return, make_task
from ape_jax.cli.output import prepare, say
from ape_jax.config import Hypers, RunConfig, TrainConfig, read_settings, resolve
from ape_jax.evaluation import intervals
from ape_jax.evaluation import returns as evaluation
from ape_jax.networks import EnsembleParams
from ape_jax.reporting import tables
from ape_jax.runs import checkpoint, metrics, trackers
from ape_jax.runs.directory import RunDirectory, is_finished, newest_state
from ape_jax.runs.loop import (
    Interrupted,
    Watching,
    code_of,
    deaf,
    stopped_by_signals,
    train,
)
from ape_jax.training import devices as sharding
from ape_jax.training.trainer import EVALUATE, RANDOM, Trainer, mesh_of, seed_keys
from ape_jax.types import AlgorithmName, RunError, SettingError


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Train an adversarial policy ensemble, several seeds side by side.

    Defaults are the recipe of the chosen --algorithm and --head, and of --min-return where it is
    given; a --config file overrides them, and flags both.
    """

    settings: tyro.conf.OmitArgPrefixes[tyro.conf.AvoidSubcommands[TrainConfig]]
    """What shapes the program. A change recompiles."""
    hypers: tyro.conf.OmitArgPrefixes[tyro.conf.AvoidSubcommands[Hypers]]
    """Numbers in the program."""
    algorithm: AlgorithmName = "pg"
    """The kind of update."""
    seeds: int = 1
    """Runs trained side by side, each with its own random numbers."""
    first_seed: int = 0
    """The seeds are numbered from here."""
    preset: Annotated[
        str | None,
        tyro.conf.arg(help=f"Settings in place of a recipe: one of {', '.join(presets.names())}."),
    ] = None
    """Name of settings in place of a recipe."""
    config: Path | None = None
    """YAML file of settings: the flags' names, with underscores. A run's config.yaml is one."""
    out: Path = Path("runs/train")
    """Directory of the run."""
    overwrite: bool = False
    """Replace the run that --out already holds."""
    resume: Path | None = None
    """Go on with the run in this directory, from its newest checkpoint and with its own settings,
    as if it had never been stopped."""
    save_every: int | None = None
    """Updates between two checkpoints, in chunks of 50 or of this if it is fewer; if not given,
    about every half minute. The last state is always saved."""
    keep: int = 3
    """How many of the newest checkpoints are kept, besides the best."""
    quiet: bool = False
    """No live view; warnings alone."""
    debug_nans: bool = False
    """Name the operation that first makes a NaN; slower."""
    tensorboard: bool = False
    """Curves for TensorBoard, in the run's directory."""
    wandb: str | None = None
    """Project of Weights & Biases that gets the curves; WANDB_MODE=offline keeps them here."""
    devices: int | None = None
    """Devices of each process to spread seeds and environments over; if not given, as many as
    divide them evenly. A CPU is one device, or as many as asked for. Sums round differently."""
    distributed: bool = False
    """One of several processes, on as many machines as you like, that train together. Process 0
    writes the run; the others must be started with the same settings."""
    coordinator: str | None = None
    """host:port of process 0; found by itself on clusters such as SLURM."""
    num_processes: int | None = None
    """Processes in all; likewise."""
    process_id: int | None = None
    """Number of this process, from 0; likewise."""


def defaults(arguments: Sequence[str]) -> TrainOptions:
    """What flags override: a recipe, a preset, or what a file or the run to resume says."""

    @dataclasses.dataclass(frozen=True)
    class First:
        head: str | None = None
        min_return: float | None = None
        config: Path | None = None
        preset: str | None = None
        algorithm: str | None = None
        resume: Path | None = None

    names = ("--head", "--min-return", "--config", "--preset", "--algorithm", "--resume")
    known = [part for name in names for part in _flag_and_value(arguments, name)]
    first = tyro.cli(First, prog="ape-jax train", args=known)
    given = {name: getattr(first, name) for name in ("preset", "config", "resume")}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) > 1:
        (one, other), values = list(given)[:2], list(given.values())
        raise SettingError(
            f"{one} and {other} each set everything; got {values[0]} and {values[1]}. Leave one out"
        )
    choice = {name: getattr(first, name) for name in ("head", "min_return", "algorithm")}
    choice = {name: value for name, value in choice.items() if value is not None}
    if first.preset is not None:
        return TrainOptions(**_as_options(presets.config(first.preset)), preset=first.preset)
    if first.resume is not None:
        own = _settings_of(first.resume)
        return TrainOptions(**_as_options(own), resume=first.resume, out=first.resume)
    if first.config is not None:
        config = resolve(read_settings(first.config), choice)
        return TrainOptions(**_as_options(config), config=first.config)
    return TrainOptions(**_as_options(resolve(choice)))


def _as_options(config: RunConfig) -> dict:
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {"settings": fields.pop("train"), "algorithm": config.train.algorithm, **fields}


def _settings_of(run: Path) -> RunConfig:
    """Of a run that is to be gone on with."""
    if not (run / "config.yaml").exists():
        raise SettingError(
            f"resume must be the directory of a run; {run} holds no config.yaml. Train with "
            "--out, or name another"
        )
    return RunConfig.load(run / "config.yaml", complete=True)


def _flag_and_value(arguments: Sequence[str], name: str) -> list[str]:
    """The last use of a flag, which is the one that counts."""
    found: list[str] = []
    for index, argument in enumerate(arguments):
        if argument == name:
            found = list(arguments[index : index + 2])
        elif argument.startswith(name + "="):
            found = [argument]
    return found


def run(options: TrainOptions, console: Console) -> int:
    """Train, save, evaluate."""
    config = RunConfig(
        options.settings, options.hypers, options.seeds, options.first_seed, options.save_every
    )
    _check(options, config)
    if options.resume is not None and is_finished(options.resume):
        updates = config.train.num_updates
        say(Console(), f"{options.resume} is finished, after {updates} updates")
        return 0
    if options.quiet:
        logging.getLogger("ape_jax").setLevel("WARNING")
    devices = _start(options)
    mesh_of(config.train, config.seeds, devices)
    task = make_task(config.train)
    check_min_return(task, config.hypers)
    runner = Trainer(task, devices=devices, debug_nans=options.debug_nans)
    if jax.process_index() > 0:
        return _take_part(runner, config, options)
    out = prepare(options.out)
    directory = RunDirectory(out)
    try:
        with stopped_by_signals():
            return _run(options, config, runner, directory, console)
    finally:
        directory.release()


def _check(options: TrainOptions, config: RunConfig) -> None:
    """Everything that needs no computing."""
    if options.keep < 1:
        raise SettingError(f"keep must be at least 1; got {options.keep}")
    trackers.check(options.tensorboard, options.wandb)
    if options.resume is None:
        if not options.process_id:
            _check_free(options)
        return
    own, given = _settings_of(options.resume).to_flat(), config.to_flat()
    for name in own:
        if own[name] != given[name]:
            raise SettingError(
                f"resume goes on with the run's own settings; its {name} is {own[name]!r}, got "
                f"{given[name]!r}. Leave it out, or train another run"
            )
    if options.overwrite or options.out != options.resume:
        raise SettingError(
            "resume writes to the run that it goes on with; got "
            f"{'overwrite' if options.overwrite else f'out {options.out}'}. Leave it out"
        )


def _check_free(options: TrainOptions) -> None:
    if (options.out / "config.yaml").exists() and not options.overwrite:
        raise SettingError(
            f"out must not hold a run already; {options.out} does. Choose another, go on with "
            f"--resume {options.out}, or add --overwrite"
        )


def _start(options: TrainOptions) -> list[jax.Device] | None:
    place = sharding.Cluster(options.coordinator, options.num_processes, options.process_id)
    if not options.distributed and place != sharding.Cluster():
        raise SettingError(
            "coordinator, num_processes and process_id go with --distributed; add it"
        )
    return sharding.start(options.devices, place if options.distributed else None)


def _take_part(runner: Trainer, config: RunConfig, options: TrainOptions) -> int:
    """What the processes other than the first do: the same training, of which they keep nothing."""
    num_done, state = 0, None
    if options.resume is not None:
        num_done, state, *_ = newest_state(options.resume, config, runner.task)
    keys = seed_keys(config.first_seed, config.seeds)
    for _ in runner.chunks(keys, config.hypers, state, num_done, config.chunk):
        pass
    sharding.leave()
    return 0


def _run(
    options: TrainOptions,
    config: RunConfig,
    runner: Trainer,
    directory: RunDirectory,
    console: Console,
) -> int:
    task, out = runner.task, directory.path
    if options.resume is None:
        _check_free(options)  # Another run may have come and gone since.
    watching = Watching(console, options.quiet, options.tensorboard, options.wandb)
    saver = checkpoint.Saver(out, config, options.keep)
    started = time.monotonic()
    try:
        resume = options.resume is not None
        state = train(runner, config, directory, saver, watching, resume)
        seconds = time.monotonic() - started
        params, multipliers = jax.device_get((state.params, state.multipliers))
        if options.distributed:
            sharding.leave()
            task = make_task(config.train)
        summary = _evaluate(task, config, params) | {"train_seconds": seconds}
        if multipliers is not None:
            summary["multipliers"] = intervals.over_seeds(multipliers)
        saver.wait()
        checkpoint.save_params(out, params, config)
        metrics.write_json(out / "summary.json", summary)
    except OSError as error:
        raise RunError(
            f"{out} cannot be written ({error}). Make room, then: {_resume(options)}"
        ) from None
    except Interrupted as stop:
        return _say_how_to_go_on(options, console, stop.num_done, stop.code)
    except KeyboardInterrupt as stop:  # While it was evaluated.
        with deaf():
            saver.wait()
        return _say_how_to_go_on(options, console, config.train.num_updates, code_of(stop))
    _show_training(summary, config, out)
    return 0


def _say_how_to_go_on(options: TrainOptions, console: Console, num_done: int, code: int) -> int:
    num_updates = options.settings.num_updates
    what = f"after {num_done} of {num_updates} updates"
    if not num_done:
        what = "before anything was finished"
    say(console, f"interrupted {what}; go on with: {_resume(options)}")
    return code


def _resume(options: TrainOptions) -> str:
    """The command that goes on with a run as it was begun."""
    flags = ["--resume", str(options.out)]
    if options.keep != TrainOptions.keep:
        flags += ["--keep", str(options.keep)]
    if options.tensorboard:
        flags += ["--tensorboard"]
    if options.wandb is not None:
        flags += ["--wandb", options.wandb]
    return f"ape-jax train {shlex.join(flags)}"


def _evaluate(task: Task, config: RunConfig, params: EnsembleParams) -> dict:
    """What ``summary.json`` says of the parameters [K, …]."""
    evaluate = jax.jit(jax.vmap(evaluation.ensemble_returns, (None, 0, 0)), static_argnums=0)
    keys = seed_keys(config.first_seed, config.seeds, EVALUATE)
    returns = evaluate(task, params.heads, keys)
    at_random = evaluation.random_return(task.world, seed_keys(config.first_seed, 1, RANDOM)[0])
    summary = {
        "pe_return": intervals.over_seeds(returns.pe),
        "expert_returns": intervals.over_seeds(returns.experts),
        "greedy_experts": intervals.over_seeds(returns.greedy_experts),
        "mixture": intervals.over_seeds(returns.mixture),
        "random_return": at_random.mean,
        "random_std": at_random.std,
        "dead_experts": evaluation.collapsed_experts(returns.experts, at_random).tolist(),
        "evaluation": (
            "exact"
            if task.world.mdp is not None
            else f"{evaluation.NUM_EPISODES} episodes a policy"
        ),
        "num_updates": config.train.num_updates,
        "fingerprint": metrics.fingerprint(params),
    }
    if config.hypers.min_return is not None:
        summary["min_return"] = config.hypers.min_return
    return summary


def _show_training(summary: dict, config: RunConfig, out: Path) -> None:
    experts = summary["expert_returns"]
    lines = [["ensemble (PE)", tables.mean_and_std(summary["pe_return"])]]
    for index, values in enumerate(zip(*experts["values"], strict=True)):
        summary_of_one = intervals.over_seeds(values)
        lines.append([f"expert {index + 1}", tables.mean_and_std(summary_of_one)])
    lines.append(["uniform mixture π_o", tables.mean_and_std(summary["mixture"])])
    title = (
        f"{config.train.env} after {summary['num_updates']} updates, "
        f"mean ± std over {config.seeds} seed(s)"
    )
    console = Console()
    console.print(tables.rich_table(title, ["who acts", "return of an episode"], lines))
    if config.hypers.min_return is not None:
        say(console, _describe_constraint(experts["values"], config.hypers.min_return))
    for index, count in enumerate(map(sum, zip(*summary["dead_experts"], strict=True))):
        if count:
            say(
                console,
                f"expert {index + 1} died in {count} of {config.seeds} seed(s): it returns less "
                "than half of what the best one does, counted from a random policy",
            )
    say(console, f"evaluation: {summary['evaluation']}; run saved in {out}")


def _describe_constraint(expert_returns: list[list[float]], min_return: float) -> str:
    """Which experts keep the return that they must keep: no tolerance, so the shortfall is told."""
    kept = [
        f"expert {index + 1} in {sum(value >= min_return for value in values)} of {len(values)} "
        f"seed(s), lowest {min(values):.2f}"
        for index, values in enumerate(zip(*expert_returns, strict=True))
    ]
    return f"return of at least {min_return:g} kept by " + "; ".join(kept)
