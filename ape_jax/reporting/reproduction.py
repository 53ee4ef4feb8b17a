"""The figures of the reproduction: the paper's Figures 3 and 4, and learning curves."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import jax

from ape_jax.envs import GridWorld
from ape_jax.evaluation.reproduce import LABELS, Scale, Trained, panels
from ape_jax.reporting import figures, grid_figures
from ape_jax.training.trainer import EVALUATE, seed_keys

FIGURES = ("figure3.png", "figure4.png", "learning_curves.png")


def draw(trained: Sequence[Trained], scale: Scale, out: Path) -> None:
    """Write Figures 3 and 4, of the first seed, and the learning curves."""
    by_name = {one.row.name: one for one in trained}
    world = trained[0].task.world
    assert world.mdp is not None
    env, mdp = cast(GridWorld, world.env), world.mdp
    key = seed_keys(scale.first_seed, 1, EVALUATE)[0]
    shown = {}
    for name in ("pg_ape", "greedy_ape"):
        heads = jax.tree.map(lambda x: x[0], by_name[name].heads)
        task = by_name[name].task
        shown[LABELS[name]] = panels(task, heads, key, scale.num_demonstrations, with_network=True)
    experts = {label: found.experts for label, found in shown.items()}
    observers = {label: found.observers for label, found in shown.items()}
    curves = {
        label: metrics
        for name, label in LABELS.items()
        if (metrics := by_name[name].metrics) is not None
    }
    title = "The experts, and the ensemble that an observer sees"
    drawn = (
        grid_figures.policy_figure(env, mdp, experts, title),
        grid_figures.policy_figure(env, mdp, observers, "What observers make of it"),
        figures.learning_curves(curves, -float(world.horizon)),
    )
    for name, figure in zip(FIGURES, drawn, strict=True):
        figures.save_figure(figure, out / name)
