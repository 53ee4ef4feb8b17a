"""The 10 × 10 gridworld of ``ape_jax.envs`` as operations on whole batches."""

import torch
from torch import Tensor

SIZE = 10
GOAL = 0
"""The cell in the upper left corner; cells are numbered row by row."""
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1), (0, 0))
"""(row, column) step of each action: up, down, left, right, stay."""
NUM_CELLS = SIZE * SIZE
NUM_ACTIONS = len(MOVES)
HORIZON = 100
"""An episode is cut after so many steps."""


def reset(num_envs: int, generator: torch.Generator) -> Tensor:
    """Cells [num_envs], drawn uniformly from those that are not the goal, which is the first."""
    return torch.randint(
        GOAL + 1, NUM_CELLS, (num_envs,), generator=generator, device=generator.device
    )


def step(cells: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One step of every environment; the caller counts them, and cuts episodes at ``HORIZON``.

    Args:
      cells: where the agents stand, of any shape.
      actions: of the same shape.

    Returns:
      The next cells, the rewards, and which episodes ended on the goal.
    """
    moves = torch.tensor(MOVES, device=cells.device)[actions]
    rows = (cells // SIZE + moves[..., 0]).clamp(0, SIZE - 1)
    columns = (cells % SIZE + moves[..., 1]).clamp(0, SIZE - 1)
    cells = rows * SIZE + columns
    return cells, torch.full(cells.shape, -1.0, device=cells.device), cells == GOAL


def tables(device: torch.device | str) -> tuple[Tensor, Tensor]:
    """The same world looked up: next cells [S, A] and rewards [S, A].

    The goal is left for nowhere and costs nothing there, so that what follows the end of an episode
    needs no mask.
    """
    cells = torch.arange(NUM_CELLS, device=device)[:, None].expand(-1, NUM_ACTIONS)
    actions = torch.arange(NUM_ACTIONS, device=device).expand(NUM_CELLS, -1)
    successors, rewards, _ = step(cells, actions)
    successors[GOAL], rewards[GOAL] = GOAL, 0.0
    return successors, rewards
