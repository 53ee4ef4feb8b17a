import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

from ape_jax import plotting
from ape_jax.core import tabular
from ape_jax.learner import Metrics


def test_policy_figure_shows_values_and_returns(small_grid, small_mdp):
    stay = np.zeros((9, 5))
    stay[:, 4] = 1.0
    best = np.asarray(tabular.optimal_policy(small_mdp))
    figure = plotting.policy_figure(
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
    plotting.draw_policy(axes, small_grid, np.zeros(9), up, -8.0)
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
    figure = plotting.learning_curves({"run": Metrics(**fields)}, -100.0)
    for line, name in zip(figure.axes[0].lines, ("pe_return", "observer_return"), strict=True):
        np.testing.assert_allclose(line.get_ydata(), fields[name].mean(axis=0))
    assert figure.axes[0].get_title() == "run"
    plt.close(figure)
