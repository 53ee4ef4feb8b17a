import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
import report_sources

from ape_jax.algorithms.common import Metrics
from ape_jax.core import tabular
from ape_jax.reporting import audit_figures, figures, grid_figures


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
        report_sources.row("behaviour_cloning", "sampled", 0.3, seeds),
        report_sources.row("behaviour_cloning", "greedy", 0.4, seeds),
        report_sources.row("latent", "best", 0.9, seeds),
        report_sources.row("mixture", "sampled", 0.6, seeds, defence="pg"),
    )
    entropy = {"posterior_entropy": None}
    defences = report_sources.defence(), report_sources.defence("pg", "PG-APE", **entropy)
    threats = report_sources.strongest(rows)
    return report_sources.audit(seeds, rows=rows, threats=threats, defences=defences)


@pytest.mark.parametrize("seeds", [1, 2])
def test_observer_bars_reach_from_random_to_the_best_way_of_acting(seeds):
    audit = two_defences(seeds)
    figure = audit_figures.observer_bars(audit)
    for axes, defence in zip(figure.axes, audit.defences, strict=True):
        best = {row.observer: row for row in reversed(audit.rows_of(defence.name))}
        assert axes.get_title() == defence.label
        assert len(axes.patches) == len(best)
        reached = {bar.get_x() + bar.get_width() for bar in axes.patches}
        expected = {row.clone_return.mean for row in best.values()}
        assert sorted(reached) == pytest.approx(sorted(expected))
        assert {bar.get_x() for bar in axes.patches} == {audit.random_return}
        colours = {bar.get_facecolor() for bar in axes.patches}
        assert len(colours) == len({row.sees for row in best.values()})
        drawn = [tuple(line.get_xdata()) for line in axes.lines]
        assert all(row.clone_return.ends in drawn for row in best.values())
        marks = [line for line in axes.lines if line.get_marker() == "D"]
        greedy = [row for row in audit.rows_of(defence.name) if row.deployment == "greedy"]
        assert [line.get_xdata()[0] for line in marks] == [row.clone_return.mean for row in greedy]
    plt.close(figure)


def test_threat_shares_show_each_model_beside_the_plain_greedy_clone():
    audit = two_defences(2)
    figure = audit_figures.threat_shares(audit)
    axes = figure.axes[0]
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert names[0] == "plain cloning,\ngreedy"
    assert names[1:] == [row.threat for row in audit.threats]
    shares = np.ma.filled(axes.images[0].get_array(), np.nan)
    expected = [0.4, *(row.fraction.mean for row in audit.threats)]
    np.testing.assert_allclose(shares[0], expected)
    assert np.all(np.isnan(shares[1]))  # Nobody attacked the second ensemble.
    plt.close(figure)


def test_demonstration_curves_have_a_line_for_each_threat_model():
    figure = audit_figures.demonstration_curves(two_defences(2))
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) > 1]
    drawn = {line.get_label(): line for line in lines if not line.get_label().startswith("_")}
    assert list(drawn) == ["pooled", "online"]
    for name, share in (("pooled", 0.01), ("online", 0.02)):
        np.testing.assert_allclose(drawn[name].get_xdata(), [1, 10])
        np.testing.assert_allclose(drawn[name].get_ydata(), [share, 10 * share])
    assert figure.axes[0].get_xscale() == "log"
    plt.close(figure)


def test_posterior_entropy_has_a_line_where_it_is_known():
    figure = audit_figures.posterior_entropy(two_defences(2))
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
