import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
import report_sources

from ape_jax.algorithms.common import Metrics
from ape_jax.core import tabular
from ape_jax.reporting import figures, grid_figures


def test_policy_figure_shows_values_and_returns(small_grid, small_mdp):
    stay = np.zeros((9, 5))
    stay[:, 4] = 1.0
    best = np.asarray(tabular.optimal_policy(small_mdp))
    figure = grid_figures.policy_figure(
        small_grid, small_mdp, {"row": {"best": best, "both": np.stack([best, stay])}}, "title"
    )
    drawn = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(np.ravel(drawn), tabular.state_values(small_mdp, jnp.asarray(best)))
    returns = [tabular.policy_return(small_mdp, jnp.asarray(policy)) for policy in (best, stay)]
    assert figure.axes[0].get_title() == f"best\nreturn {returns[0]:.1f}"
    assert figure.axes[1].get_title() == f"both\nreturn {np.mean(returns):.1f}"
    plt.close(figure)


def test_arrows_point_where_the_action_moves(small_grid, small_mdp):
    """On the image rows grow downwards: "up" must draw towards smaller rows."""
    up = np.zeros((9, 5))
    up[:, 0] = 1.0
    figure, axes = plt.subplots()
    grid_figures.draw_policy(axes, small_grid, np.zeros(9), up, -8.0)
    arrows = [c for c in axes.collections if hasattr(c, "U")]
    assert len(arrows) == 4
    assert np.all(arrows[0].V < 0)
    assert np.all(np.abs(arrows[0].U) < 1e-9)
    assert all(np.all(np.abs(a.U) + np.abs(a.V) < 1e-9) for a in arrows[1:])
    assert axes.yaxis_inverted()
    plt.close(figure)


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_learning_curves_draw_mean_and_band(num_seeds):
    fields = dict.fromkeys(Metrics._fields, np.zeros((num_seeds, 30)))
    fields["pe_return"] = np.linspace(-50, -10, num_seeds)[:, None] + np.zeros((1, 30))
    fields["observer_return"] = fields["pe_return"] - 30.0
    figure = figures.learning_curves({"run": Metrics(**fields)}, -100.0)
    for line, name in zip(figure.axes[0].lines, ("pe_return", "observer_return"), strict=True):
        np.testing.assert_allclose(line.get_ydata(), fields[name].mean(axis=0))
    assert figure.axes[0].get_title() == "run"
    plt.close(figure)


def two_defences(seeds):
    """An audit of two ensembles; the second lacks an observer."""
    rows = (
        report_sources.row("mixture", "sampled", 0.2, seeds),
        report_sources.row("dagger", "greedy", 0.4, seeds),
        report_sources.row("mixture", "sampled", 0.6, seeds, defence="pg"),
    )
    entropy = {"posterior_entropy": None}
    defences = report_sources.defence(), report_sources.defence("pg", "PG-APE", **entropy)
    return report_sources.audit(seeds, rows=rows, defences=defences)


@pytest.mark.parametrize("seeds", [1, 2])
def test_observer_bars_reach_from_random_to_the_clone(seeds):
    audit = two_defences(seeds)
    figure = figures.observer_bars(audit)
    for axes, defence in zip(figure.axes, audit.defences, strict=False):
        rows = audit.rows_of(defence.name)
        assert axes.get_title() == defence.label
        assert len(axes.patches) == len(rows)
        for bar, row in zip(axes.patches, rows, strict=True):
            assert bar.get_x() + bar.get_width() == pytest.approx(row.clone_return.mean)
            assert bar.get_x() == audit.random_return
        ends = [tuple(line.get_xdata()) for line in axes.lines[:-1]]
        assert ends == [row.clone_return.ends for row in rows]
    plt.close(figure)


def test_limited_curves_are_drawn_in_order_of_their_axis():
    figure = figures.limited_curves(two_defences(2))
    (line,) = figure.axes[0].lines
    np.testing.assert_allclose(line.get_xdata(), [1, 10])
    np.testing.assert_allclose(line.get_ydata(), [-3, -12])
    plt.close(figure)


def test_posterior_entropy_has_a_line_where_it_is_known():
    figure = figures.posterior_entropy(two_defences(2))
    (line,) = figure.axes[0].lines
    np.testing.assert_allclose(line.get_ydata(), [0.65, 0.25])
    plt.close(figure)


def test_frontier_has_a_panel_for_each_observer_and_a_line_for_each_training():
    figure = figures.frontier(report_sources.sweep())
    assert len(figure.axes) == 2
    for axes in figure.axes:
        exact, sampled, _ = axes.lines
        np.testing.assert_allclose(exact.get_xdata(), [-11.0, -11.5])
        np.testing.assert_allclose(sampled.get_ydata(), [-27.5, -55.0])
    plt.close(figure)


def test_grid_of_many_experts_is_drawn_in_rows():
    panels = {f"expert {index}": np.zeros((9, 5)) for index in range(7)}
    rows = list(grid_figures.in_rows(panels).values())
    assert [len(row) for row in rows] == [4, 3]
    assert [name for row in rows for name in row] == list(panels)
