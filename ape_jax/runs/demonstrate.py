"""Demonstrations of a trained run: what observers get to see of one of its ensembles."""

from pathlib import Path

import jax

from ape_jax.demonstrations import collect
from ape_jax.demonstrations.files import DemonstrationFile
from ape_jax.runs import checkpoint
from ape_jax.training.trainer import DEMONSTRATE, seed_keys
from ape_jax.types import SettingError

MAX_STEPS = 100_000_000
"""Largest number of steps. All of them are in memory at once: about 2 GB on the gridworld."""


def sample(
    run: Path | str, num_steps: int, seed: int | None = None
) -> tuple[DemonstrationFile, int]:
    """Sample demonstrations of a run that ``ape-jax train`` made.

    The same seed and number of steps give the same demonstrations.

    Args:
      run: its directory.
      num_steps: exact number of steps (N).
      seed: number of one of the run's seeds; None takes the first.

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
