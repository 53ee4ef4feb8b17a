"""The command line: settings from arguments, and exit codes; ``commands`` do the work."""

import logging
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
from ape_jax.config import recipe
from ape_jax.types import RunError, SettingError

_TYRO = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes)

_COMMANDS: dict[str, tuple[Any, type]] = {
    "reproduce": (reproduce, reproduce.ReproduceOptions),
    "train": (train, train.TrainOptions),
    "audit": (audit, audit.AuditOptions),
    "demos": (demos, demos.DemosOptions),
    "sweep": (sweep, sweep.SweepOptions),
    "suite": (suite, suite.SuiteOptions),
    "plot": (plot, plot.PlotOptions),
    "report": (report, report.ReportOptions),
    "export": (export, export.ExportOptions),
}
"""Each command's module, which has ``run(options, console) -> exit code``, and its options."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; exit code 2 and one message for a setting that breaks a rule.

    What cannot be read or written on the way, or training gone astray, is one message and code 1.
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
        command, options = _parse(arguments)
        _keep_compiled_programs()
        code = _COMMANDS[command][0].run(options, console)
    except SettingError as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        code = 2
    except (RunError, OSError) as error:  # Such as a disk that is full.
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        code = 1
    except KeyboardInterrupt:
        console.print("interrupted before anything was finished", style="yellow")
        code = INTERRUPTED
    sys.exit(code)


def _keep_compiled_programs() -> None:
    """Let later runs find what this one compiles, in the user's cache folder.

    JAX's own settings go first: JAX_COMPILATION_CACHE_DIR names another folder, and
    JAX_ENABLE_COMPILATION_CACHE=false keeps nothing.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        # By machine: home folders are shared, instruction sets are not.
        folder = platformdirs.user_cache_path("ape_jax") / "compiled" / platform.node()
        jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _parse(arguments: list[str]) -> tuple[str, Any]:
    """The command and its options; exits with help, or with a message about what is wrong."""
    if not arguments or arguments[0] not in _COMMANDS:
        known: Any = Annotated[
            train.TrainOptions,
            tyro.conf.subcommand("train", default=train.TrainOptions(*recipe("tabular"))),
        ]
        for name, (_, kind) in _COMMANDS.items():
            if name != "train":
                known = known | Annotated[kind, tyro.conf.subcommand(name)]
        tyro.cli(known, prog="ape-jax", args=arguments, config=_TYRO)
        raise SystemExit(2)
    command, *rest = arguments
    default: dict[str, Any] = {"default": train.defaults(rest)} if command == "train" else {}
    kind = _COMMANDS[command][1]
    return command, tyro.cli(kind, prog=f"ape-jax {command}", args=rest, config=_TYRO, **default)
