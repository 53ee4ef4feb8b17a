"""``ape-jax export``: export a run's policies for programs that do not have this package."""

from rich.console import Console

from ape_jax.cli.options import ExportOptions
from ape_jax.cli.output import prepare, say
from ape_jax.runs import checkpoint, export
from ape_jax.types import SettingError


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
