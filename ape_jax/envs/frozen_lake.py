"""gymnax' FrozenLake as a finite MDP, read off its map and settings."""

import itertools

import jax.numpy as jnp
import numpy as np
from gymnax.environments.environment import EnvParams
from gymnax.environments.misc.frozen_lake import GOAL, HOLE, START, FrozenLake

from ape_jax.core.tabular import FiniteMDP

MOVES = ((0, -1), (1, 0), (0, 1), (-1, 0))
"""(row, column) step of each action: left, down, right, up. Neighbours are at right angles."""


def finite_mdp(env: FrozenLake, params: EnvParams) -> FiniteMDP:
    """The lake as arrays, built tile by tile and apart from the environment's ``step_env``.

    States are the tiles, row by row. The agent moves as it meant to with ``success_rate``, else to
    either side with equal probability; at the edge it stays. The reward is that of the tile it
    lands on. A hole or the goal ends the episode. The rows of these tiles are as ``step_env`` has
    them, and no episode uses them.
    """
    tiles = np.asarray(env.desc)
    rows, columns = tiles.shape
    success = env.success_rate if env.is_slippery else 1.0
    turns = {0: success, -1: (1.0 - success) / 2.0, 1: (1.0 - success) / 2.0}

    transition = np.zeros((tiles.size, len(MOVES), tiles.size))
    for tile, action, turn in itertools.product(range(tiles.size), range(len(MOVES)), turns):
        row, column = divmod(tile, columns)
        row_step, column_step = MOVES[(action + turn) % len(MOVES)]
        row = min(max(row + row_step, 0), rows - 1)
        column = min(max(column + column_step, 0), columns - 1)
        transition[tile, action, row * columns + column] += turns[turn]

    kinds = tiles.ravel()
    goal, hole, frozen = np.asarray(env.reward_schedule)
    landing = np.where(kinds == GOAL, goal, np.where(kinds == HOLE, hole, frozen))
    return FiniteMDP(
        transition=jnp.asarray(transition, jnp.float32),
        reward=jnp.asarray(transition @ landing, jnp.float32),
        start=jnp.asarray(kinds == START, jnp.float32),
        terminal=jnp.asarray((kinds == GOAL) | (kinds == HOLE)),
        horizon=int(params.max_steps_in_episode),
    )
