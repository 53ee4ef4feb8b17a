"""The paper's gridworld as a gymnax environment, and the same world as a finite MDP."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces

from ape_jax.core.tabular import FiniteMDP
from ape_jax.types import SettingError

ACTIONS = ("up", "down", "left", "right", "stay")
MOVES = np.array([(-1, 0), (1, 0), (0, -1), (0, 1), (0, 0)], np.int32)
"""(row, column) step of each action."""


def _move(action: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The action's row of ``MOVES``, by comparisons: many of them vectorise, look-ups do not."""
    row_step = column_step = jnp.int32(0)
    for index, (rows, columns) in enumerate(MOVES):
        chosen = (action == index).astype(jnp.int32)
        row_step, column_step = row_step + rows * chosen, column_step + columns * chosen
    return row_step, column_step


@struct.dataclass
class EnvState(environment.EnvState):
    """Cell of the agent, from the top left, and steps since the episode began."""

    time: jax.Array  # gymnax says int, and holds arrays.
    """Steps since the episode began."""
    row: jax.Array
    column: jax.Array


@struct.dataclass
class EnvParams(environment.EnvParams):
    """The time limit in steps."""

    max_steps_in_episode: int | jax.Array = 100  # Traced by gymnax.


class GridWorld(environment.Environment[EnvState, EnvParams]):
    """A square grid with one goal cell (paper, section 5).

    Five actions move one cell or stay; walking into a wall stays. Every step costs 1 until the goal
    is reached. Episodes start uniformly off the goal and are truncated at the time limit. The
    observation is the cell's number, row by row.
    """

    def __init__(self, size: int = 10, goal: tuple[int, int] = (0, 0), horizon: int = 100):
        """A grid of ``size`` × ``size`` cells with a goal at (row, column).

        With the defaults an optimal policy returns −9.09. ``horizon`` is the default time limit in
        steps.

        Raises:
          SettingError: a size below 2, a horizon below 1, or a goal off the grid.
        """
        super().__init__()
        if size < 2:
            raise SettingError(f"size must be at least 2; got {size}")
        if not all(0 <= coordinate < size for coordinate in goal):
            raise SettingError(
                f"goal must be a (row, column) on the {size} x {size} grid; got {goal}"
            )
        if horizon < 1:
            raise SettingError(f"horizon must be at least 1; got {horizon}")
        self.size, self.goal, self.horizon = size, goal, horizon
        goal_cell = goal[0] * size + goal[1]
        self._starts = np.delete(np.arange(size * size, dtype=np.int32), goal_cell)

    @property
    def name(self) -> str:
        """The id that gymnax knows it by."""
        return "GridWorld-ape"

    @property
    def num_actions(self) -> int:
        """Five."""
        return len(ACTIONS)

    @property
    def num_states(self) -> int:
        """Cells of the grid."""
        return self.size * self.size

    @property
    def default_params(self) -> EnvParams:
        """The time limit that the constructor got."""
        return EnvParams(max_steps_in_episode=self.horizon)

    def reset_env(self, key: jax.Array, params: EnvParams) -> tuple[jax.Array, EnvState]:
        """Start in a cell drawn uniformly from those that are not the goal."""
        # One draw where jax.random.randint makes four; shares are off by less than cells / 2^23.
        start = (jax.random.uniform(key) * len(self._starts)).astype(jnp.int32)
        cell = jnp.asarray(self._starts)[jnp.minimum(start, len(self._starts) - 1)]
        state = EnvState(time=jnp.int32(0), row=cell // self.size, column=cell % self.size)
        return self.observe(key, state, None, params), state

    def step_env(
        self, key: jax.Array, state: EnvState, action: int | float | jax.Array, params: EnvParams
    ) -> tuple[jax.Array, EnvState, jax.Array, jax.Array, dict[Any, Any]]:
        """Move; −1 for the step. Deterministic: the key is not used."""
        row_step, column_step = _move(jnp.asarray(action))
        state = EnvState(
            time=state.time + 1,
            row=jnp.clip(state.row + row_step, 0, self.size - 1),
            column=jnp.clip(state.column + column_step, 0, self.size - 1),
        )
        observation = self.observe(key, state, action, params)
        terminated = self.is_terminated(state, params)
        return observation, state, jnp.float32(-1.0), terminated, {}

    def observe(
        self,
        key: jax.Array,
        state: EnvState,
        action: int | float | jax.Array | None,
        params: EnvParams,
    ) -> jax.Array:
        """The number of the agent's cell, row by row."""
        del key, action, params
        return state.row * self.size + state.column

    def is_terminated(self, state: EnvState, params: EnvParams) -> jax.Array:
        """Whether the agent stands on the goal."""
        del params
        return (state.row == self.goal[0]) & (state.column == self.goal[1])

    def action_space(self, params: EnvParams | None = None) -> spaces.Discrete:
        """Up, down, left, right, stay."""
        del params
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params: EnvParams | None = None) -> spaces.Discrete:
        """The cells."""
        del params
        return spaces.Discrete(self.num_states)

    def state_space(self, params: EnvParams) -> spaces.Dict:
        """Cell and elapsed time."""
        cells, times = spaces.Discrete(self.size), spaces.Discrete(params.max_steps_in_episode + 1)
        return spaces.Dict({"row": cells, "column": cells, "time": times})

    def finite_mdp(self, params: EnvParams | None = None) -> FiniteMDP:
        """The same world as arrays, built cell by cell and apart from ``step_env``."""
        params = params or self.default_params
        cells, actions = self.num_states, self.num_actions
        transition = np.zeros((cells, actions, cells), np.float32)
        for cell in range(cells):
            row, column = divmod(cell, self.size)
            for action, (row_step, column_step) in enumerate(MOVES):
                inside = 0 <= row + row_step < self.size and 0 <= column + column_step < self.size
                successor = cell + row_step * self.size + column_step if inside else cell
                transition[cell, action, successor] = 1.0
        start = np.zeros(cells, np.float32)
        start[self._starts] = 1.0 / len(self._starts)
        # Unlike jnp.asarray and jnp.full, this compiles nothing.
        transition, reward, start, terminal = jax.device_put(
            (transition, np.full((cells, actions), -1.0, np.float32), start, start == 0.0)
        )
        return FiniteMDP(transition, reward, start, terminal, int(params.max_steps_in_episode))
