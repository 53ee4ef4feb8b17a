"""``ape-jax demos``: demonstrations of a trained ensemble, into a file."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import tyro
from jaxtyping import Array, Int
from rich.console import Console

from ape_jax.algorithms.task import Task
from ape_jax.cli.output import prepare, say
from ape_jax.demonstrations import collect as demonstrations
from ape_jax.demonstrations import files as demonstration_files
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.demonstrations.minari import check_minari, to_minari
from ape_jax.runs import checkpoint
from ape_jax.training.trainer import DEMONSTRATE, seed_keys
from ape_jax.types import Params, SettingError

MAX_STEPS = 100_000_000
"""All steps are in memory at once: about 2 GB of them on the gridworld."""


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


def run(options: DemosOptions, console: Console) -> int:
    """Sample, write, and say what was written."""
    del console
    report = write(
        options.run,
        options.out,
        options.steps,
        seed=options.seed,
        overwrite=options.overwrite,
        with_expert=not options.without_expert,
        minari=options.minari,
    )
    say(
        Console(),
        f"seed {report.seed}: {report.steps:,} steps in {report.episodes:,} episodes, mean return "
        f"{report.mean_return:.2f} of those complete; {report.bytes / 1e6:.2f} MB in {options.out}",
    )
    return 0


class Sample(NamedTuple):
    """Demonstrations of one seed of a run."""

    env_id: str
    """Name of the environment."""
    env_param: tuple[str, ...]
    """Its parameters that differ from its defaults, as ``name=value``."""
    seed: int
    """Number of the seed."""
    demonstrations: Demonstrations
    """What observers get."""
    hidden_expert: Int[Array, " N"]
    """Who acted, which observers never get."""


class _Ensemble(NamedTuple):
    """One seed of a run."""

    seed: int
    task: Task
    heads: Params


class Report(NamedTuple):
    """What was written."""

    seed: int
    """Number of the seed."""
    steps: int
    """Demonstration steps."""
    episodes: int
    """Those that are cut short among them."""
    mean_return: float
    """Of complete episodes, undiscounted."""
    bytes: int
    """Size of the file."""


def sample(run: Path | str, num_steps: int, seed: int | None = None) -> Sample:
    """Sample demonstrations of a run that ``ape-jax train`` made, in one jitted pass.

    Args:
      run: its directory.
      num_steps: N, exactly.
      seed: which of the run's seeds, by its number; the first if None. The same seed and number of
        steps give the same demonstrations.

    Raises:
      SettingError: no run, no such seed in it, or steps too few for an episode, or too many.
    """
    return _sample(_select(run, num_steps, seed), num_steps)


def write(
    run: Path | str,
    out: Path,
    num_steps: int,
    seed: int | None = None,
    overwrite: bool = False,
    with_expert: bool = True,
    minari: str | None = None,
) -> Report:
    """Sample demonstrations of a run and write them.

    Args:
      run: its directory.
      out: the ``.npz`` file.
      num_steps: as in ``sample``.
      seed: as in ``sample``.
      overwrite: replace the file if it is there.
      with_expert: keep the hidden expert in the file, apart from what observers may see.
      minari: also export a Minari dataset of this name, never with the hidden expert.

    Raises:
      SettingError: as ``sample``, or the output is there already or cannot be written.
    """
    if out.is_dir():
        raise SettingError(f"out must be a file; {out} is a directory. Name a file in it")
    if out.exists() and not overwrite:
        raise SettingError(
            f"out must not exist already; {out} does. Choose another, or add --overwrite"
        )
    if minari is not None:
        check_minari(minari)
    ensemble = _select(run, num_steps, seed)
    sampled = _sample(ensemble, num_steps)
    prepare(out.parent, "file")
    hidden_expert = sampled.hidden_expert if with_expert else None
    world = (sampled.env_id, sampled.demonstrations)
    demonstration_files.save(out, *world, hidden_expert, sampled.env_param)
    if minari is not None:
        to_minari(minari, *world, env_param=sampled.env_param)
    returns = demonstrations.complete_returns(sampled.demonstrations)
    return Report(
        seed=sampled.seed,
        steps=num_steps,
        episodes=int(sampled.demonstrations.episode[-1]) + 1,
        mean_return=float(np.mean(returns)),
        bytes=out.stat().st_size,
    )


def _select(run: Path | str, num_steps: int, seed: int | None) -> _Ensemble:
    """Check the settings of ``sample``, and read the ensemble."""
    if not 2 <= num_steps <= MAX_STEPS:
        raise SettingError(f"steps must be at least 2 and at most {MAX_STEPS}; got {num_steps}")
    config, task, params = checkpoint.load_run(run)
    first, last = config.first_seed, config.first_seed + config.seeds - 1
    seed = first if seed is None else seed
    if not first <= seed <= last:
        held = f"seed {first}" if first == last else f"seeds {first} to {last}"
        raise SettingError(f"seed must be one that the run holds; {run} holds {held}; got {seed}")
    return _Ensemble(seed, task, jax.tree.map(lambda leaf: leaf[seed - first], params.heads))


def _sample(ensemble: _Ensemble, num_steps: int) -> Sample:
    seed, task, heads = ensemble
    collect = jax.jit(demonstrations.collect, static_argnums=(1, 3))
    key = seed_keys(seed, 1, DEMONSTRATE)[0]
    shown, hidden_expert = jax.block_until_ready(collect(key, task, heads, num_steps))
    if not bool((shown.terminated | shown.truncated).any()):
        raise SettingError(
            f"steps must be enough for one complete episode; {num_steps} were not. "
            f"An episode has up to {task.world.horizon}"
        )
    return Sample(task.config.env, task.config.env_param, seed, shown, hidden_expert)
