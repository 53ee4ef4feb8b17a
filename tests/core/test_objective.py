import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ape_jax.core import objective
from ape_jax.core.objective import Evaluated


def trajectory(values, live=(1.0, 1.0, 0.0)):
    return Evaluated(
        log_probs=jnp.array([-0.5, -1.5, -9.0]),
        values=jnp.array(values),
        entropies=jnp.array([1.0, 0.5, 7.0]),
        returns=jnp.array([-3.0, -2.0, 50.0]),
        variances=jnp.zeros(3),
        weights=jnp.array(live),
    )


def test_expert_loss_sums_over_live_steps():
    loss = objective.expert_loss(trajectory([[-1.0], [-2.5], [0.0]]))
    # −Σ log π (R − V) and ½ Σ (V − R)² over the two live steps, by hand.
    assert loss.policy == pytest.approx(-(-0.5 * -2.0 + -1.5 * 0.5))
    assert loss.value == pytest.approx(0.5 * (2.0**2 + 0.5**2))
    assert loss.entropy == pytest.approx(1.5)


def test_observer_loss_weighs_returns_by_minus_beta():
    loss = objective.observer_loss(trajectory([[1.0], [0.5], [0.0]]), beta=0.5)
    # Targets −β R are 1.5 and 1.
    assert loss.policy == pytest.approx(-(-0.5 * 0.5 + -1.5 * 0.5))
    assert loss.value == pytest.approx(0.5 * (0.5**2 + 0.5**2))


def test_observer_loss_with_shared_critics_uses_their_mean_as_baseline():
    apart = trajectory([[1.0, 3.0], [0.0, 4.0], [0.0, 0.0]])
    together = trajectory([[2.0], [2.0], [0.0]])
    shared, single = (objective.observer_loss(x, 0.5) for x in (apart, together))
    assert shared.policy == pytest.approx(float(single.policy))
    # Each critic regresses on its own: ¼ Σ_c Σ_t (V_c − target)².
    assert shared.value == pytest.approx(0.25 * (0.5**2 + 1.5**2 + 1.0**2 + 3.0**2))


def test_policy_loss_holds_the_baseline_constant():
    gradient = jax.grad(lambda x: objective.expert_loss(x).policy, allow_int=True)(
        trajectory([[-1.0], [-2.5], [0.0]])
    )
    np.testing.assert_array_equal(gradient.values, 0.0)
    np.testing.assert_allclose(gradient.log_probs, [2.0, -0.5, 0.0])


def test_losses_ignore_what_lies_beyond_the_end_even_if_it_is_not_finite():
    broken = trajectory([[-1.0], [-2.5], [0.0]])._replace(
        log_probs=jnp.array([-0.5, -1.5, -jnp.inf]), returns=jnp.array([-3.0, -2.0, jnp.nan])
    )
    clean = objective.expert_loss(trajectory([[-1.0], [-2.5], [0.0]]))
    for ours, expected in zip(objective.expert_loss(broken), clean, strict=True):
        assert ours == pytest.approx(float(expected))


def test_dual_step_raises_the_multiplier_of_a_violated_constraint_only():
    ours = objective.dual_step(jnp.ones(2), jnp.array([-15.0, -10.0]), -12.0, 0.1)
    np.testing.assert_allclose(ours, np.exp([0.3, -0.2]), rtol=1e-6)


def test_dual_step_keeps_multipliers_in_bounds():
    ours = objective.dual_step(jnp.array([900.0, 0.002]), jnp.array([-99.0, 99.0]), 0.0, 1.0)
    np.testing.assert_allclose(ours, [1e3, 1e-3])


def test_dual_objective_with_equal_multipliers_is_the_penalised_form():
    """λ for all: (λ J(PE) − J(π_o)) / (1 + λ), which is Eq. 3 with β = 1/λ up to its scale."""
    returns, observer, multiplier = jnp.array([-10.0, -14.0]), jnp.float32(-50.0), 4.0
    ours = objective.dual_objective(returns, observer, jnp.full(2, multiplier))
    penalised = jnp.mean(returns) - observer / multiplier
    assert ours == pytest.approx(float(penalised * multiplier / (1 + multiplier)))
