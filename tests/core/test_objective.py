import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ape_jax.core import objective
from ape_jax.core.objective import LossInputs


def trajectory(values, weights=(1.0, 1.0, 0.0)):
    return LossInputs(
        log_probs=jnp.array([-0.5, -1.5, -9.0]),
        values=jnp.array(values),
        entropies=jnp.array([1.0, 0.5, 7.0]),
        returns=jnp.array([-3.0, -2.0, 50.0]),
        variances=jnp.zeros(3),
        weights=jnp.array(weights),
    )


def test_expert_loss_sums_over_steps_of_weight_one():
    loss = objective.expert_loss(trajectory([[-1.0], [-2.5], [0.0]]))
    # −Σ log π (R − V) and ½ Σ (V − R)² over the two steps that count, by hand.
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


def test_losses_ignore_steps_after_the_end_that_are_not_finite():
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


def test_a_gate_opens_above_the_least_return():
    returns = jnp.array([-5.0, 1.0, 2.0, 9.0, jnp.nan])
    np.testing.assert_allclose(objective.gate(returns, 1.0, 2.0), [0.0, 0.0, 0.5, 1.0, 0.0])


def test_clipped_surrogate_is_the_formula_of_ppo():
    random_ = np.random.default_rng(1)
    old, advantages = random_.normal(size=(2, 50))
    new = old + 0.3 * random_.normal(size=50)
    ratios = np.exp(new - old)
    expected = np.minimum(ratios * advantages, np.clip(ratios, 0.8, 1.2) * advantages).mean()
    ours = objective.clipped_surrogate(*map(jnp.asarray, (new, old, advantages)), 0.2)
    assert float(ours) == pytest.approx(-expected, rel=1e-5)


def test_a_clipped_value_has_no_gradient_once_it_moved_far_enough():
    def loss(value, clip):
        return objective.clipped_value_loss(
            jnp.array([value]), jnp.zeros(1), jnp.array([1.0]), clip
        )

    assert float(jax.grad(loss)(0.5, 0.2)) == 0.0
    assert float(jax.grad(loss)(0.5, None)) == pytest.approx(-0.5)
    assert float(jax.grad(loss)(0.1, 0.2)) == pytest.approx(-0.9)
    assert float(loss(0.5, 0.2)) == pytest.approx(0.5 * 0.8**2)
