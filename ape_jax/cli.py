"""The command line: ``ape-jax train``, ``reproduce`` and ``demos``."""

import dataclasses
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import TaskID

from ape_jax import __version__, checkpoint, demos, evaluation, metrics, reproduce, tables
from ape_jax.commands import audit
from ape_jax.commands.audit import AuditOptions
from ape_jax.config import Hypers, RunConfig, TrainConfig, recipe
from ape_jax.learner import Task, make_task
from ape_jax.runner import EVALUATE, Chunk, Runner, describe_returns, progress_bar, seed_keys
from ape_jax.types import SettingError

INTERRUPTED = 130
"""Exit code after Ctrl-C, by convention 128 + SIGINT."""


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Train an adversarial policy ensemble, several seeds side by side.

    Defaults are the recipe of the chosen --head, and of --min-return where it is given; a --config
    file overrides them, and flags both.
    """

    settings: tyro.conf.OmitArgPrefixes[TrainConfig]
    hypers: tyro.conf.OmitArgPrefixes[Hypers]
    seeds: int = 1
    """Runs trained side by side, each with its own random numbers."""
    first_seed: int = 0
    """The seeds are numbered from here."""
    config: Path | None = None
    """YAML file of settings: the flags' names, with underscores. A run's config.yaml is one."""
    out: Path = Path("runs/train")
    """Directory of the run."""
    overwrite: bool = False
    """Replace the run that --out already holds."""


@dataclasses.dataclass(frozen=True)
class ReproduceOptions:
    """Reproduce the paper's Table 1 and Figures 3 and 4, with the observers that it left out."""

    seeds: int | None = None
    """Ensembles of each kind: 10, or 3 with --quick, if not given."""
    quick: bool = False
    """A first look in about a minute: 400 updates at most, 100,000 demonstration steps."""
    out: Path = Path("runs/reproduce")
    """Directory of tables and figures; those of an earlier reproduction are replaced."""


@dataclasses.dataclass(frozen=True)
class DemosOptions:
    """Write demonstrations of a trained ensemble: what observers get to see of it."""

    run: tyro.conf.Positional[Path]
    """Directory of a run that ape-jax train made."""
    out: Path
    """The .npz file; docs/demonstrations.md describes the format."""
    steps: int = 100_000
    """Steps in all, of episodes whose expert is drawn anew each time."""
    seed: int | None = None
    """Which of the run's seeds, by its number; the first if not given."""
    without_expert: bool = False
    """Leave out which expert acted: for a file that goes to an attacker."""
    minari: str | None = None
    """Export a Minari dataset of this name as well, such as gridworld/ape-v0; never the expert."""
    overwrite: bool = False
    """Replace the file if it is there."""


_TYRO = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; exit code 2 and one message for a setting that breaks a rule."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    console = Console(stderr=True)
    log = logging.getLogger("ape_jax")
    log.handlers = [RichHandler(console=console, show_path=False)]
    log.setLevel("INFO")
    log.propagate = False
    if arguments == ["--version"]:
        print(__version__)
        return
    try:
        options = _parse(arguments)
        if isinstance(options, TrainOptions):
            code = train(options, console)
        elif isinstance(options, AuditOptions):
            code = audit.run(options, console)
        elif isinstance(options, DemosOptions):
            code = write_demonstrations(options)
        else:
            code = run_reproduction(options, console)
    except SettingError as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        code = 2
    except KeyboardInterrupt:
        console.print("interrupted before anything was finished", style="yellow")
        code = INTERRUPTED
    sys.exit(code)


def _parse(arguments: list[str]) -> TrainOptions | ReproduceOptions | DemosOptions | AuditOptions:
    command, rest = arguments[:1], arguments[1:]
    if command == ["train"]:
        defaults = _train_defaults(rest)
        return tyro.cli(
            TrainOptions, prog="ape-jax train", args=rest, default=defaults, config=_TYRO
        )
    if command == ["reproduce"]:
        return tyro.cli(ReproduceOptions, prog="ape-jax reproduce", args=rest, config=_TYRO)
    if command == ["demos"]:
        return tyro.cli(DemosOptions, prog="ape-jax demos", args=rest, config=_TYRO)
    if command == ["audit"]:
        return tyro.cli(AuditOptions, prog="ape-jax audit", args=rest, config=_TYRO)
    # Help on all commands, or a message about one that does not exist; either way it exits.
    defaults = TrainOptions(*recipe("tabular"))
    commands = (
        Annotated[TrainOptions, tyro.conf.subcommand("train", default=defaults)]
        | Annotated[ReproduceOptions, tyro.conf.subcommand("reproduce")]
        | Annotated[DemosOptions, tyro.conf.subcommand("demos")]
        | Annotated[AuditOptions, tyro.conf.subcommand("audit")]
    )
    return tyro.cli(commands, prog="ape-jax", args=arguments, config=_TYRO)


def _train_defaults(arguments: list[str]) -> TrainOptions:
    """What flags override: the recipe of --head and --min-return, or what a --config file says."""

    @dataclasses.dataclass(frozen=True)
    class First:
        head: str | None = None
        min_return: float | None = None
        config: Path | None = None

    names = ("--head", "--min-return", "--config")
    known = [part for name in names for part in _flag_and_value(arguments, name)]
    first = tyro.cli(First, prog="ape-jax train", args=known)
    if first.config is not None:
        loaded = RunConfig.load(first.config, first.head, first.min_return)
        return TrainOptions(
            loaded.train, loaded.hypers, loaded.seeds, loaded.first_seed, config=first.config
        )
    return TrainOptions(*recipe("mlp" if first.head == "mlp" else "tabular", first.min_return))


def _flag_and_value(arguments: list[str], name: str) -> list[str]:
    """The last use of a flag, which is the one that counts."""
    found: list[str] = []
    for index, argument in enumerate(arguments):
        if argument == name:
            found = arguments[index : index + 2]
        elif argument.startswith(name + "="):
            found = [argument]
    return found


def train(options: TrainOptions, console: Console) -> int:
    """``ape-jax train``: train, evaluate, save."""
    config = RunConfig(options.settings, options.hypers, options.seeds, options.first_seed)
    task = make_task(config.train)
    if (options.out / "config.yaml").exists() and not options.overwrite:
        raise SettingError(
            f"out must not hold a run already; {options.out} does. Choose another, "
            "or add --overwrite"
        )
    out = _prepare(options.out)

    started = time.monotonic()
    last = _train_and_log(task, config, out, console)
    if last is None:
        raise KeyboardInterrupt
    seconds = time.monotonic() - started
    checkpoint.save_params(out, last.state.params)

    evaluate = jax.jit(jax.vmap(evaluation.ensemble_returns, (None, 0, 0)), static_argnums=0)
    keys = seed_keys(config.first_seed, config.seeds, EVALUATE)
    returns = evaluate(task, last.state.params.heads, keys)
    summary = {
        "pe_return": metrics.over_seeds(returns.pe),
        "expert_returns": metrics.over_seeds(returns.experts),
        "greedy_experts": metrics.over_seeds(returns.greedy_experts),
        "mixture": metrics.over_seeds(returns.mixture),
        "evaluation": (
            "exact" if task.mdp is not None else f"{evaluation.NUM_EPISODES} episodes a policy"
        ),
        "num_updates": last.num_done,
        "train_seconds": seconds,
        "fingerprint": metrics.fingerprint(last.state.params),
    }
    if last.state.multipliers is not None:
        summary["min_return"] = config.hypers.min_return
        summary["multipliers"] = metrics.over_seeds(last.state.multipliers)
    metrics.write_json(out / "summary.json", summary)
    _show_training(summary, config, out)
    return 0 if last.num_done == config.train.num_updates else INTERRUPTED


def _train_and_log(task: Task, config: RunConfig, out: Path, console: Console) -> Chunk | None:
    """Train to the end, or to the last chunk before Ctrl-C; None if there was none."""
    last = None
    num_updates = config.train.num_updates
    with progress_bar(console) as progress:
        bar = progress.add_task("training", total=num_updates, returns="compiling")
        try:
            keys = seed_keys(config.first_seed, config.seeds)
            for chunk in Runner(task).run(keys, config.hypers):
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
        _say(console, _describe_constraint(experts["values"], config.hypers.min_return))
    _say(console, f"evaluation: {summary['evaluation']}; run saved in {out}")


def _describe_constraint(expert_returns: list[list[float]], min_return: float) -> str:
    """Which experts keep the return that they must keep: no tolerance, so the shortfall is told."""
    kept = [
        f"expert {index + 1} in {sum(value >= min_return for value in values)} of {len(values)} "
        f"seed(s), lowest {min(values):.2f}"
        for index, values in enumerate(zip(*expert_returns, strict=True))
    ]
    return f"return of at least {min_return:g} kept by " + "; ".join(kept)


def run_reproduction(options: ReproduceOptions, console: Console) -> int:
    """``ape-jax reproduce``: the table and the figures."""
    scale = reproduce.Scale()
    if options.quick:
        scale = reproduce.Scale(seeds=3, max_updates=400, num_demonstrations=100_000)
    if options.seeds is not None:
        scale = dataclasses.replace(scale, seeds=options.seeds)
    if scale.seeds < 1:
        raise SettingError(f"seeds must be at least 1; got {scale.seeds}")
    out = _prepare(options.out)
    if (out / "metrics.jsonl").exists():
        raise SettingError(f"out must not hold a training run; {out} does. Choose another --out")
    for name in reproduce.FIGURES:
        (out / name).unlink(missing_ok=True)

    started = time.monotonic()
    reproduction = reproduce.Reproduction(scale)
    horizon = reproduction.task.num_steps
    rows: list[reproduce.Row] = []
    code = 0
    with progress_bar(console) as progress:
        bars: dict[str, TaskID] = {}

        def report(name: str, chunk: Chunk | None) -> None:
            if chunk is None:
                bars[name] = progress.add_task(
                    reproduce.LABELS[name], total=None, returns="compiling"
                )
                return
            progress.update(
                bars[name],
                total=chunk.num_updates,
                completed=chunk.num_done,
                returns=describe_returns(chunk.metrics),
            )

        try:
            for row in reproduction.rows(report):
                rows.append(row)
                progress.update(
                    bars[row.name],
                    total=max(row.num_updates),
                    completed=max(row.num_updates),
                    returns=f"PE {np.mean(row.returns.pe):.2f}  "
                    f"BC greedy {np.mean(row.returns.bc_greedy):.2f}",
                )
                content = reproduce.table_json(rows, scale, horizon, started)
                reproduce.write_table(out, content)
            drawing = progress.add_task("figures", total=1, returns="")
            reproduction.draw(rows, out)
            progress.update(drawing, completed=1)
        except KeyboardInterrupt:
            if not rows:
                raise
            code = INTERRUPTED
    content = reproduce.table_json(rows, scale, horizon, started)
    reproduce.write_table(out, content)
    reproduce.write_settings(out, rows)

    stdout = Console()
    header, lines = tables.table1_cells(content, reproduce.LABELS)
    title = f"Table 1: returns, mean ± std over {scale.seeds} seed(s)"
    lines = [tables.narrow(line) for line in lines]
    stdout.print(tables.rich_table(title, tables.narrow(header), lines))
    _say(stdout, f"{tables.EXPLANATION}\n{tables.PAPER_NOTE}")
    finished = (
        "" if code == 0 else f"interrupted after {len(rows)} of {len(reproduce.LABELS)} rows; "
    )
    _say(stdout, f"{finished}{content['wall_seconds']:.0f} s; files in {out}")
    return code


def write_demonstrations(options: DemosOptions) -> int:
    """``ape-jax demos``: demonstrations of a run, into a file."""
    report = demos.write(
        options.run,
        options.out,
        options.steps,
        seed=options.seed,
        overwrite=options.overwrite,
        with_expert=not options.without_expert,
        minari=options.minari,
    )
    _say(
        Console(),
        f"seed {report.seed}: {report.steps:,} steps in {report.episodes:,} episodes, mean return "
        f"{report.mean_return:.2f} of those complete; {report.bytes / 1e6:.2f} MB in {options.out}",
    )
    return 0


def _say(console: Console, text: str) -> None:
    """Print as it stands: paths may hold what looks like markup."""
    console.print(text, markup=False, highlight=False)


def _prepare(out: Path) -> Path:
    """Make the output directory, sure that files can be written there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise SettingError(
            f"out must be a directory that can be written; got {out} "
            f"({os.strerror(error.errno or 0)}). Choose another --out"
        ) from None
    return out
