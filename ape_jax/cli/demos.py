"""``ape-jax demos``: write demonstrations of a trained ensemble to a file."""

from rich.console import Console

from ape_jax.cli.options import DemosOptions
from ape_jax.cli.output import prepare, say
from ape_jax.demonstrations import files
from ape_jax.demonstrations.collect import complete_returns
from ape_jax.demonstrations.minari import check_minari, to_minari
from ape_jax.runs import demonstrate
from ape_jax.types import SettingError


def run(options: DemosOptions, console: Console) -> int:
    """Sample, write, and print what was written."""
    out = options.out
    if out.is_dir():
        raise SettingError(f"out must be a file; {out} is a directory. Name a file in it")
    if out.exists() and not options.overwrite:
        raise SettingError(
            f"out must not exist already; {out} does. Choose another, or add --overwrite"
        )
    if options.minari is not None:
        check_minari(options.minari)
    sampled, seed = demonstrate.sample(options.run, options.steps, options.seed)
    env_id, shown, hidden_expert, env_param = sampled
    prepare(out.parent, "file")
    files.save(out, env_id, shown, None if options.without_expert else hidden_expert, env_param)
    if options.minari is not None:
        to_minari(options.minari, env_id, shown, env_param=env_param)
    say(
        Console(),
        f"seed {seed}: {options.steps:,} steps in {int(shown.episode[-1]) + 1:,} episodes, "
        f"mean return of complete episodes {complete_returns(shown).mean():.2f}; "
        f"{out.stat().st_size / 1e6:.2f} MB in {out}",
    )
    return 0
