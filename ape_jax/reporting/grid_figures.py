"""Figures of policies on the gridworld."""

from collections.abc import Mapping

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Array, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ape_jax.core.tabular import FiniteMDP, state_values
from ape_jax.envs.gridworld import MOVES, GridWorld

PANELS_IN_A_ROW = 4

LEAST_ARROW = 0.02
"""Actions that are less probable are not drawn."""


def draw_policy(axes: Axes, env: GridWorld, values: np.ndarray, policy: np.ndarray, limit: float):
    """Draw one policy on the grid: colour for the return from each cell, arrows for its actions.

    The length of an arrow, or the size of the dot for "stay", is the probability in ``policy``
    [S, A]. The colours of ``values`` [S] begin at the lowest return, ``limit``. The image is
    returned for a colour bar.
    """
    size = env.size
    image = axes.imshow(values.reshape(size, size), cmap="viridis", vmin=limit, vmax=0.0)
    cells = np.delete(np.arange(size * size), env.goal[0] * size + env.goal[1])
    rows, columns = cells // size, cells % size
    for action, (down, right) in enumerate(MOVES):
        probs = np.where(policy[cells, action] < LEAST_ARROW, 0.0, policy[cells, action])
        if (down, right) == (0, 0):
            axes.scatter(columns, rows, s=28 * probs, color="white", edgecolors="black", lw=0.3)
            continue
        axes.quiver(
            columns,
            rows,
            right * probs * 0.46,
            down * probs * 0.46,
            color="white",
            edgecolor="black",
            linewidth=0.25,
            angles="xy",
            scale_units="xy",
            scale=1,
            width=0.009,
            headwidth=3.2,
            headlength=3.4,
            headaxislength=3.2,
            minlength=0,
        )
    axes.text(env.goal[1], env.goal[0], "G", color="black", ha="center", va="center", weight="bold")
    axes.set_xticks([])
    axes.set_yticks([])
    return image


Policies = Float[Array, "..."] | np.ndarray
"""Probabilities [S, A] of a policy, or [E, S, A] of several."""


def policy_figure(
    env: GridWorld, mdp: FiniteMDP, rows: Mapping[str, Mapping[str, Policies]], title: str = ""
) -> Figure:
    """Rows of policies on the grid under one colour scale.

    The rows map the label of each row to its panels, and the title of each panel to its policy.
    Values and probabilities of several policies are averaged.
    """
    limit = -float(mdp.horizon)
    num_columns = max(len(panels) for panels in rows.values())
    figure, grid = plt.subplots(
        len(rows),
        num_columns,
        figsize=(2.9 * num_columns + 0.9, 3.25 * len(rows) + 0.6),
        squeeze=False,
        layout="constrained",
    )
    for line, (label, panels) in zip(grid, rows.items(), strict=True):
        for axes in line[len(panels) :]:
            axes.set_axis_off()
        line[0].set_ylabel(label, fontsize=11)
        for axes, (name, policies) in zip(line, panels.items(), strict=False):
            policies = np.asarray(policies).reshape(-1, *mdp.reward.shape)
            values = np.mean(
                [np.asarray(state_values(mdp, jnp.asarray(one))) for one in policies], axis=0
            )
            image = draw_policy(axes, env, values, policies.mean(axis=0), limit)
            axes.set_title(f"{name}\nreturn {values @ np.asarray(mdp.start):.1f}", fontsize=10)
    figure.colorbar(image, ax=grid, shrink=0.8, pad=0.02, label="expected return from the cell")
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def in_rows(panels: Mapping[str, Policies]) -> dict[str, dict[str, Policies]]:
    """Panels in rows; blanks of different length stand in the place of the rows' labels."""
    items = list(panels.items())
    starts = range(0, len(items), PANELS_IN_A_ROW)
    return {" " * start: dict(items[start : start + PANELS_IN_A_ROW]) for start in starts}
