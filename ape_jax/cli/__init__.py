"""The command line: one parser for all commands, and the exit codes.

The parser needs no JAX, so help, and messages about flags, come at once. A command does, and its
module is imported when it runs.
"""

import contextlib
import functools
import gc
import importlib
import logging
import operator
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import platformdirs
import tyro
from rich.console import Console
from rich.logging import RichHandler

from ape_jax._version import __version__
from ape_jax.cli import options
from ape_jax.cli.output import INTERRUPTED
from ape_jax.cli.train_options import TrainOptions
from ape_jax.errors import RunError, SettingError

_COMMANDS: dict[str, type] = {
    "reproduce": options.ReproduceOptions,
    "train": TrainOptions,
    "audit": options.AuditOptions,
    "demos": options.DemosOptions,
    "sweep": options.SweepOptions,
    "suite": options.SuiteOptions,
    "plot": options.PlotOptions,
    "report": options.ReportOptions,
    "export": options.ExportOptions,
}
"""Options of each command. The module of its name has ``run(options, console) -> exit code``."""


SMALL_LOOPS = "--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=100000"
"""On a CPU a loop over less than 100 kB becomes one function, where otherwise each operation of its
step is started on its own. JAX's default is 1 kB. The user's own ``XLA_FLAGS`` come after it."""


def parse(arguments: Sequence[str]) -> Any:
    """The options of a command; or SystemExit after help (code 0) or a message (code 2)."""
    commands: dict[str, Any] = {
        name: Annotated[kind, tyro.conf.FlagCreatePairsOff, tyro.conf.subcommand(name)]
        for name, kind in _COMMANDS.items()
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

    Args:
      arguments: those of the command line; None takes them from the process, which is then this
        command's alone.
    """
    console = Console(stderr=True)
    log = logging.getLogger("ape_jax")
    log.handlers = [RichHandler(console=console, show_path=False)]
    log.setLevel("INFO")
    log.propagate = False
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given == ["--version"]:
        print(__version__)
        return
    try:
        parsed = parse(given)
        with contextlib.nullcontext() if arguments is not None else _own_process():
            command = _import_command(type(parsed))
        _keep_compiled_programs()
        code = command.run(parsed, console)
    except (SettingError, RunError, OSError) as error:  # Such as a disk that is full.
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        code = 2 if isinstance(error, SettingError) else 1
    except KeyboardInterrupt:
        console.print("interrupted before anything was finished", style="yellow")
        code = INTERRUPTED
    sys.exit(code)


def _import_command(kind: type) -> Any:
    """The module of the command that has these options."""
    (name,) = [name for name, own in _COMMANDS.items() if own is kind]
    return importlib.import_module(f"ape_jax.cli.{name}")


@contextlib.contextmanager
def _own_process() -> Iterator[None]:
    """Settings of the process while a command is imported; the process does nothing else."""
    os.environ["MPLBACKEND"] = "Agg"  # Commands draw into files only.
    os.environ["XLA_FLAGS"] = f"{SMALL_LOOPS} {os.environ.get('XLA_FLAGS', '')}"
    # Looking for garbage takes a quarter of the time of the imports, and modules are never garbage:
    # once imported, they are not looked at again, which makes tracing quicker too.
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _keep_compiled_programs() -> None:
    """Keep compiled programs in the user's cache folder; JAX's own settings come first."""
    import jax  # Not above, where help would need it.

    if jax.config.values["jax_compilation_cache_dir"] is None:
        # One folder per machine: home folders are shared, instruction sets are not.
        folder = platformdirs.user_cache_path("ape_jax") / "compiled" / platform.node()
        jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
