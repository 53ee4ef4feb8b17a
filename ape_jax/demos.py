"""What ``ape-jax demos`` does: demonstrations of a trained ensemble, into a file."""

import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int

from ape_jax import checkpoint, demonstration_files, demonstrations, interop
from ape_jax.demonstrations import Demonstrations
from ape_jax.learner import Task
from ape_jax.runner import DEMONSTRATE, seed_keys
from ape_jax.types import Params, SettingError

MAX_STEPS = 100_000_000
"""All steps are in memory at once: about 2 GB of them on the gridworld."""


class Sample(NamedTuple):
    """Demonstrations of one seed of a run."""

    env_id: str
    seed: int
    demonstrations: Demonstrations
    hidden_expert: Int[Array, " N"]


class _Ensemble(NamedTuple):
    """One seed of a run."""

    seed: int
    task: Task
    heads: Params


class Report(NamedTuple):
    """What was written."""

    seed: int
    steps: int
    episodes: int
    """Those that are cut short among them."""
    mean_return: float
    """Of complete episodes, undiscounted."""
    bytes: int


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
      num_steps: as in :func:`sample`.
      seed: as in :func:`sample`.
      overwrite: replace the file if it is there.
      with_expert: keep the hidden expert in the file, apart from what observers may see.
      minari: also export a Minari dataset of this name, never with the hidden expert.

    Raises:
      SettingError: as :func:`sample`, or the output is there already or cannot be written.
    """
    if out.is_dir():
        raise SettingError(f"out must be a file; {out} is a directory. Name a file in it")
    if out.exists() and not overwrite:
        raise SettingError(
            f"out must not exist already; {out} does. Choose another, or add --overwrite"
        )
    if minari is not None:
        interop.check_minari(minari)
    ensemble = _select(run, num_steps, seed)
    _make_room(out)
    sampled = _sample(ensemble, num_steps)
    hidden_expert = sampled.hidden_expert if with_expert else None
    demonstration_files.save(out, sampled.env_id, sampled.demonstrations, hidden_expert)
    if minari is not None:
        interop.to_minari(minari, sampled.env_id, sampled.demonstrations)
    returns = demonstrations.complete_returns(sampled.demonstrations)
    return Report(
        seed=sampled.seed,
        steps=num_steps,
        episodes=int(sampled.demonstrations.episode[-1]) + 1,
        mean_return=float(np.mean(returns)),
        bytes=out.stat().st_size,
    )


def _select(run: Path | str, num_steps: int, seed: int | None) -> _Ensemble:
    """Check the settings of :func:`sample`, and read the ensemble."""
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
            f"An episode has up to {task.num_steps}"
        )
    return Sample(task.config.env, seed, shown, hidden_expert)


def _make_room(out: Path) -> None:
    """Make the directory of a file, sure that files can be written there."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise SettingError(
            f"out must be a file that can be written; got {out} "
            f"({os.strerror(error.errno or 0)}). Choose another --out"
        ) from None
