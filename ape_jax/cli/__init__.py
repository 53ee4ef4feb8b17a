"""The command line: one parser for all commands, and the exit codes."""

import functools
import logging
import operator
import os
import platform
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import platformdirs
import tyro
from rich.console import Console
from rich.logging import RichHandler

from ape_jax import __version__
from ape_jax.cli import audit, demos, export, plot, report, reproduce, suite, sweep, train
from ape_jax.cli.output import INTERRUPTED
from ape_jax.cli.train_options import TrainOptions
from ape_jax.types import RunError, SettingError

_COMMANDS: dict[str, tuple[Any, type]] = {
    "reproduce": (reproduce, reproduce.ReproduceOptions),
    "train": (train, TrainOptions),
    "audit": (audit, audit.AuditOptions),
    "demos": (demos, demos.DemosOptions),
    "sweep": (sweep, sweep.SweepOptions),
    "suite": (suite, suite.SuiteOptions),
    "plot": (plot, plot.PlotOptions),
    "report": (report, report.ReportOptions),
    "export": (export, export.ExportOptions),
}
"""The module of each command, which has ``run(options, console) -> exit code``, and its options."""


def parse(arguments: Sequence[str]) -> Any:
    """The options of a command; or SystemExit after help (code 0) or a message (code 2)."""
    commands: dict[str, Any] = {
        name: Annotated[kind, tyro.conf.FlagCreatePairsOff, tyro.conf.subcommand(name)]
        for name, (_, kind) in _COMMANDS.items()
    }
    # Flags of settings have a --no- form: a setting may be true in a preset.
    commands["train"] = Annotated[TrainOptions, tyro.conf.subcommand("train")]
    return tyro.cli(
        functools.reduce(operator.or_, commands.values()),
        prog="ape-jax",
        args=list(arguments),
        config=(tyro.conf.OmitSubcommandPrefixes,),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit.

    The exit code is 2 for a setting that breaks a rule, with one message; 1 for a file that cannot
    be read or written and for training that fails, with one message; and 130 after Ctrl-C.
    """
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
        options = parse(arguments)
        _keep_compiled_programs()
        module = next(module for module, kind in _COMMANDS.values() if type(options) is kind)
        code = module.run(options, console)
    except (SettingError, RunError, OSError) as error:  # Such as a disk that is full.
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        code = 2 if isinstance(error, SettingError) else 1
    except KeyboardInterrupt:
        console.print("interrupted before anything was finished", style="yellow")
        code = INTERRUPTED
    sys.exit(code)


def _keep_compiled_programs() -> None:
    """Keep compiled programs in the user's cache folder; JAX's own settings come first."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        # One folder per machine: home folders are shared, instruction sets are not.
        folder = platformdirs.user_cache_path("ape_jax") / "compiled" / platform.node()
        jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
