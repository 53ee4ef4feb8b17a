"""``ape-jax export``: export a run's policies for programs that do not have this package."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from ape_jax.cli.output import prepare, say
from ape_jax.runs import checkpoint, export
from ape_jax.types import SettingError


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Write a finished run's experts as safetensors and as a forward pass of jax.export."""

    run: Annotated[Path, tyro.conf.Positional]
    """Directory of the run."""
    out: Path
    """Directory for the files."""
    overwrite: bool = False
    """Replace the export that --out already holds."""


def run(options: ExportOptions, console: Console) -> int:
    """Read the run, trace its policies, and write the files."""
    if (options.out / export.DESCRIPTION).exists() and not options.overwrite:
        raise SettingError(
            f"out must not hold an export already; {options.out} does. Choose another, or add "
            "--overwrite"
        )
    config, task, params = checkpoint.load_run(options.run)
    out = prepare(options.out)
    export.export_run(out, config, task, params.heads)
    say(
        Console(),
        f"{config.seeds} seed(s) of {task.networks.num_experts} expert(s) in {out}: "
        f"{export.PARAMETERS}, {export.FORWARD}, {export.DESCRIPTION}",
    )
    return 0
