import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

from ape_jax.algorithms.common import Metrics
from ape_jax.core import tabular
from ape_jax.reporting import figures


def test_policy_figure_shows_values_and_returns(small_grid, small_mdp):
    stay = np.zeros((9, 5))
    stay[:, 4] = 1.0
    best = np.asarray(tabular.optimal_policy(small_mdp))
    figure = figures.policy_figure(
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
    figures.draw_policy(axes, small_grid, np.zeros(9), up, -8.0)
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


def summary(*values):
    low, high = (min(values), max(values)) if len(values) > 1 else (None, None)
    return {"mean": float(np.mean(values)), "low": low, "high": high, "values": list(values)}


def audit_content(*seeds):
    """Two defences, one of which lacks an observer; curves and entropies as the audit has them."""
    row = {"clone_return": summary(*(-20.0 - s for s in seeds))}
    kinds = [
        ("run", "mixture", "sampled"),
        ("run", "dagger", "greedy"),
        ("pg", "mixture", "sampled"),
    ]
    return {
        "random_return": -90.0,
        "defences": [
            {
                "name": name,
                "label": label,
                "num_experts": 2,
                "pe_return": summary(-12.0),
                "posterior_entropy": [summary(0.7, 0.6), summary(0.3, 0.2)],
            }
            for name, label in (("run", "my run"), ("pg", "PG-APE"))
        ],
        "rows": [
            {"defence": d, "observer": o, "deployment": deployed, **row} for d, o, deployed in kinds
        ],
        "curves": [
            {
                "defence": "run",
                "axis": axis,
                "value": value,
                "deployment": deployment,
                "clone_return": summary(-value - 1.0, -value - 3.0),
            }
            for axis in ("num_steps", "width")
            for value in (10, 1)
            for deployment in ("sampled", "greedy")
        ],
    }


@pytest.mark.parametrize("seeds", [(0.0,), (0.0, 4.0)])
def test_observer_bars_reach_from_random_to_the_clone(seeds):
    content = audit_content(*seeds)
    figure = figures.observer_bars(content)
    for axes, defence in zip(figure.axes, content["defences"], strict=False):
        rows = [row for row in content["rows"] if row["defence"] == defence["name"]]
        assert axes.get_title() == defence["label"]
        assert len(axes.patches) == len(rows)
        for bar, row in zip(axes.patches, rows, strict=True):
            assert bar.get_x() + bar.get_width() == pytest.approx(row["clone_return"]["mean"])
            assert bar.get_x() == -90.0
        assert len(axes.lines) == 1 + len(rows) * (len(seeds) > 1)
    plt.close(figure)


def test_limited_curves_are_drawn_in_order_of_their_axis():
    figure = figures.limited_curves(audit_content(0.0, 4.0))
    (line,) = figure.axes[0].lines
    np.testing.assert_allclose(line.get_xdata(), [1, 10])
    np.testing.assert_allclose(line.get_ydata(), [-3, -12])
    plt.close(figure)


def test_posterior_entropy_has_a_line_for_every_ensemble():
    content = audit_content(0.0, 4.0)
    content["defences"][1]["num_experts"] = 1
    figure = figures.posterior_entropy(content)
    (line,) = figure.axes[0].lines
    np.testing.assert_allclose(line.get_ydata(), [0.65, 0.25])
    plt.close(figure)


def test_frontier_has_a_panel_for_each_observer_and_a_line_for_each_training():
    points = [
        {
            "observer": observer,
            "training": training,
            "beta": beta,
            "pe_return": summary(-10.0 - beta, -11.0 - beta),
            "clone_return": summary(-50.0 * beta, -60.0 * beta),
        }
        for observer in ("uniform", "greedy")
        for training in ("sampled", "exact")
        for beta in (1.0, 0.5)
    ]
    figure = figures.frontier({"points": points})
    assert len(figure.axes) == 2
    for axes in figure.axes:
        exact, sampled, _ = axes.lines
        np.testing.assert_allclose(exact.get_xdata(), [-11.0, -11.5])
        np.testing.assert_allclose(sampled.get_ydata(), [-27.5, -55.0])
    plt.close(figure)
