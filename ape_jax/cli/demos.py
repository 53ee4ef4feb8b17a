"""``ape-jax demos``: write demonstrations of a trained ensemble to a file."""

import dataclasses
from pathlib import Path

import tyro
from rich.console import Console

from ape_jax.cli.output import prepare, say
from ape_jax.demonstrations import files
from ape_jax.demonstrations.collect import complete_returns
from ape_jax.demonstrations.minari import check_minari, to_minari
from ape_jax.runs import demonstrate
from ape_jax.types import SettingError


@dataclasses.dataclass(frozen=True)
class DemosOptions:
    """Write demonstrations of a trained ensemble: what observers get to see of it."""

    run: tyro.conf.Positional[Path]
    """Directory of a run that ape-jax train made."""
    out: Path
    """The .npz file. docs/demonstrations.md describes the format."""
    steps: int = 100_000
    """Number of steps. The expert is drawn anew for each episode."""
    seed: int | None = None
    """Number of one of the run's seeds; if not given, the first."""
    without_expert: bool = False
    """Leave out which expert acted, for a file that goes to an attacker."""
    minari: str | None = None
    """Also export a Minari dataset of this name, which never says which expert acted."""
    overwrite: bool = False
    """Replace the file if it is already there."""


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
