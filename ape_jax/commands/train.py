"""``ape-jax train``: train, evaluate, save."""

import dataclasses
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import tyro
from rich.console import Console

from ape_jax import checkpoint, evaluation, metrics, presets, sharding, tables
from ape_jax.commands.output import INTERRUPTED, prepare, say
from ape_jax.config import Hypers, RunConfig, TrainConfig, recipe_of
from ape_jax.runner import (
    EVALUATE,
    RANDOM,
    Chunk,
    Runner,
    describe_returns,
    mesh_of,
    progress_bar,
    seed_keys,
)
from ape_jax.training import make_task
from ape_jax.types import SettingError


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Train an adversarial policy ensemble, several seeds side by side.

    Defaults are the recipe of the chosen --algorithm and --head, and of --min-return where it is
    given; a --config file overrides them, and flags both.
    """

    settings: tyro.conf.OmitArgPrefixes[TrainConfig]
    hypers: tyro.conf.OmitArgPrefixes[Hypers]
    seeds: int = 1
    """Runs trained side by side, each with its own random numbers."""
    first_seed: int = 0
    """The seeds are numbered from here."""
    preset: str | None = None
    """Settings for one environment in place of a recipe, such as cartpole; an unknown name lists
    all that there are."""
    config: Path | None = None
    """YAML file of settings: the flags' names, with underscores. A run's config.yaml is one."""
    out: Path = Path("runs/train")
    """Directory of the run."""
    overwrite: bool = False
    """Replace the run that --out already holds."""
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
    """What flags override: the recipe of --head and --min-return, or what a --config file says."""

    @dataclasses.dataclass(frozen=True)
    class First:
        head: str | None = None
        min_return: float | None = None
        config: Path | None = None
        preset: str | None = None
        algorithm: str | None = None

    names = ("--head", "--min-return", "--config", "--preset", "--algorithm")
    known = [part for name in names for part in _flag_and_value(arguments, name)]
    first = tyro.cli(First, prog="ape-jax train", args=known)
    if first.preset is not None:
        if first.config is not None:
            raise SettingError(
                f"preset and config each set everything; got {first.preset!r} and {first.config}. "
                "Leave one out"
            )
        return TrainOptions(*presets.find(first.preset), preset=first.preset)
    if first.config is not None:
        loaded = RunConfig.load(first.config, first.head, first.min_return, first.algorithm)
        return TrainOptions(
            loaded.train, loaded.hypers, loaded.seeds, loaded.first_seed, config=first.config
        )
    return TrainOptions(*recipe_of(first.head, first.min_return, first.algorithm))


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
    """Train, evaluate, save."""
    config = RunConfig(options.settings, options.hypers, options.seeds, options.first_seed)
    if not options.process_id and (options.out / "config.yaml").exists() and not options.overwrite:
        raise SettingError(
            f"out must not hold a run already; {options.out} does. Choose another, "
            "or add --overwrite"
        )
    devices = _start(options)
    mesh_of(config.train, config.seeds, devices)
    task = make_task(config.train)
    if jax.process_index() > 0:
        return _take_part(Runner(task, devices=devices), config)
    out = prepare(options.out)

    started = time.monotonic()
    last = _train_and_log(Runner(task, devices=devices), config, out, console)
    if last is None:
        raise KeyboardInterrupt
    seconds = time.monotonic() - started
    params, multipliers = jax.device_get((last.state.params, last.state.multipliers))
    if options.distributed:
        sharding.leave()
        task = make_task(config.train)
    checkpoint.save_params(out, params)

    evaluate = jax.jit(jax.vmap(evaluation.ensemble_returns, (None, 0, 0)), static_argnums=0)
    keys = seed_keys(config.first_seed, config.seeds, EVALUATE)
    returns = evaluate(task, params.heads, keys)
    at_random = evaluation.random_return(task, seed_keys(config.first_seed, 1, RANDOM)[0])
    dead = evaluation.dead_experts(returns.experts, at_random)
    summary = {
        "pe_return": metrics.over_seeds(returns.pe),
        "expert_returns": metrics.over_seeds(returns.experts),
        "greedy_experts": metrics.over_seeds(returns.greedy_experts),
        "mixture": metrics.over_seeds(returns.mixture),
        "random_return": at_random.mean,
        "dead_experts": dead.tolist(),
        "evaluation": (
            "exact" if task.mdp is not None else f"{evaluation.NUM_EPISODES} episodes a policy"
        ),
        "num_updates": last.num_done,
        "train_seconds": seconds,
        "fingerprint": metrics.fingerprint(params),
    }
    if config.hypers.min_return is not None:
        summary["min_return"] = config.hypers.min_return
    if multipliers is not None:
        summary["multipliers"] = metrics.over_seeds(multipliers)
    metrics.write_json(out / "summary.json", summary)
    _show_training(summary, config, out)
    return 0 if last.num_done == config.train.num_updates else INTERRUPTED


def _start(options: TrainOptions) -> list[jax.Device] | None:
    place = sharding.Cluster(options.coordinator, options.num_processes, options.process_id)
    if not options.distributed and place != sharding.Cluster():
        raise SettingError(
            "coordinator, num_processes and process_id go with --distributed; add it"
        )
    return sharding.start(options.devices, place if options.distributed else None)


def _take_part(runner: Runner, config: RunConfig) -> int:
    """What the processes other than the first do: the same training, of which they keep nothing."""
    for _ in runner.run(seed_keys(config.first_seed, config.seeds), config.hypers):
        pass
    sharding.leave()
    return 0


def _train_and_log(runner: Runner, config: RunConfig, out: Path, console: Console) -> Chunk | None:
    """Train to the end, or to the last chunk before Ctrl-C; None if there was none."""
    last = None
    num_updates = config.train.num_updates
    with progress_bar(console) as progress:
        bar = progress.add_task("training", total=num_updates, returns="compiling")
        try:
            keys = seed_keys(config.first_seed, config.seeds)
            for chunk in runner.run(keys, config.hypers):
                if last is None:
                    _begin(out, config)
                first, last = (last.num_done if last else 0), chunk
                metrics.append_updates(out / "metrics.jsonl", chunk.metrics, first)
                progress.update(
                    bar, completed=chunk.num_done, returns=describe_returns(chunk.metrics)
                )
        except KeyboardInterrupt:
            progress.update(bar, description="interrupted")
    return last


def _begin(out: Path, config: RunConfig) -> None:
    """Put a run in the place of whatever run was there before."""
    for name in ("metrics.jsonl", "summary.json"):
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    config.save(out / "config.yaml")


def _show_training(summary: dict, config: RunConfig, out: Path) -> None:
    experts = summary["expert_returns"]
    lines = [["ensemble (PE)", tables.mean_and_std(summary["pe_return"])]]
    for index, values in enumerate(zip(*experts["values"], strict=True)):
        summary_of_one = metrics.over_seeds(values)
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
