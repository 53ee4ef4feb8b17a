"""Demonstrations of a trained run: what observers get to see of one of its ensembles."""

from pathlib import Path

import jax

from ape_jax.demonstrations import collect, files
from ape_jax.demonstrations.files import DemonstrationFile
from ape_jax.demonstrations.minari import check_minari, to_minari
from ape_jax.runs import checkpoint
from ape_jax.training.trainer import DEMONSTRATE, seed_keys
from ape_jax.types import SettingError

MAX_STEPS = 100_000_000
"""Largest number of steps. All of them are in memory at once: about 2 GB on the gridworld."""


def sample(
    run: Path | str, num_steps: int, seed: int | None = None
) -> tuple[DemonstrationFile, int]:
    """Sample demonstrations of a run that ``ape-jax train`` made.

    Args:
      run: its directory.
      num_steps: exact number of steps (N).
      seed: number of one of the run's seeds; None takes the first. The same seed and number of
        steps give the same demonstrations.

    Returns:
      What a file of them holds, and the number of the seed.

    Raises:
      SettingError: there is no such run, it has no such seed, or the steps are too many, or too few
        for one complete episode.
    """
    if not 2 <= num_steps <= MAX_STEPS:
        raise SettingError(f"steps must be at least 2 and at most {MAX_STEPS}; got {num_steps}")
    config, task, params = checkpoint.load_run(run)
    first, last = config.first_seed, config.first_seed + config.seeds - 1
    seed = first if seed is None else seed
    if not first <= seed <= last:
        held = f"seed {first}" if first == last else f"seeds {first} to {last}"
        raise SettingError(f"seed must be one that the run holds; {run} holds {held}; got {seed}")
    heads = jax.tree.map(lambda leaf: leaf[seed - first], params.heads)
    key = seed_keys(seed, 1, DEMONSTRATE)[0]
    sampled = jax.jit(collect.collect, static_argnums=(1, 3))(key, task, heads, num_steps)
    shown, hidden_expert = jax.block_until_ready(sampled)
    if not bool((shown.terminated | shown.truncated).any()):
        raise SettingError(
            f"steps must be enough for one complete episode; {num_steps} were not. "
            f"An episode has up to {task.world.horizon}"
        )
    env = config.train
    return DemonstrationFile(env.env, shown, hidden_expert, env.env_param), seed


def write(
    run: Path | str,
    out: Path,
    num_steps: int,
    seed: int | None = None,
    overwrite: bool = False,
    with_expert: bool = True,
    minari: str | None = None,
) -> tuple[DemonstrationFile, int]:
    """Sample demonstrations of a run, and write them to a file.

    Args:
      run: as in ``sample``.
      out: the ``.npz`` file; its folder is made if it does not exist.
      num_steps: as in ``sample``.
      seed: as in ``sample``.
      overwrite: whether a file that is already there is replaced.
      with_expert: whether the file says which expert acted.
      minari: name of a Minari dataset that is written too; it never says which expert acted.

    Returns:
      The output of ``sample``.

    Raises:
      SettingError: as in ``sample``; or the file or the dataset is already there, or cannot be
        written.
    """
    if out.is_dir():
        raise SettingError(f"out must be a file; {out} is a directory. Name a file in it")
    if out.exists() and not overwrite:
        raise SettingError(
            f"out must not exist already; {out} does. Choose another, or add --overwrite"
        )
    if minari is not None:
        check_minari(minari)
    sampled, seed = sample(run, num_steps, seed)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(
            f"out must be a file that can be written; got {out} ({error.strerror}). "
            "Choose another --out"
        ) from None
    env_id, shown, hidden_expert, env_param = sampled
    files.save(out, env_id, shown, hidden_expert if with_expert else None, env_param)
    if minari is not None:
        to_minari(minari, env_id, shown, env_param=env_param)
    return sampled, seed
