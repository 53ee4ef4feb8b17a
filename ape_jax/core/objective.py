"""Both terms of the PG-APE objective for one trajectory, the value losses, and the dual step.

    max_θ  J(PE) − β J(π_o)                                               (paper, Eq. 3)

Losses are minimised. They **sum over time**; the caller takes the mean over trajectories. Dividing
by the number of steps instead would shrink the observer's term against the experts', because its
episodes are longer, and training would end with experts that cooperate with the observer.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class LossInputs(NamedTuple):
    """Inputs of the losses of one trajectory: an entry for each step, or for several equal steps.

    ``samples.aggregate_by_state_action`` makes the latter, where states are finite.
    """

    log_probs: Float[Array, " T"]
    """log π(a_t|s_t) of the policy that acted, differentiable in every head that shaped it."""
    values: Float[Array, "T V"]
    """V(s_t): one column, or one per expert head where the observer's term shares their critics."""
    entropies: Float[Array, " T"]
    returns: Float[Array, " T"]
    """R(t), the return to go."""
    variances: Float[Array, " T"]
    """Variance of the returns that an entry stands for; zero where it is one step."""
    weights: Float[Array, " T"]
    """Weight of an entry: a step counts once up to the end of the episode, and not after it."""


class Loss(NamedTuple):
    """The parts of one trajectory's loss, each summed over time."""

    policy: Float[Array, ""]
    """The surrogate −Σ_t w_t log π(a_t|s_t) Ã(t), with Ã held constant. Its gradient is minus the
    trajectory's policy gradient (paper, Eq. 5)."""
    value: Float[Array, ""]
    """Squared error of the critic."""
    entropy: Float[Array, ""]
    """In nats; it enters the total with a minus sign."""


def clipped_surrogate(
    log_probs: Float[Array, " N"],
    old_log_probs: Float[Array, " N"],
    advantages: Float[Array, " N"],
    clip_eps: Float[Array, ""] | float,
) -> Float[Array, ""]:
    """PPO's surrogate, negated, mean over steps (Schulman et al., arXiv 1707.06347, Eq. 7).

    −min(ρ Â, clip(ρ, 1 − ε, 1 + ε) Â) with ρ = π(a|s) / π_old(a|s). In the observer's term Â is
    minus its advantage.
    """
    ratios = jnp.exp(log_probs - old_log_probs)
    clipped = jnp.clip(ratios, 1.0 - clip_eps, 1.0 + clip_eps)
    return -jnp.mean(jnp.minimum(ratios * advantages, clipped * advantages))


def clipped_value_loss(
    values: Float[Array, " N"],
    old_values: Float[Array, " N"],
    targets: Float[Array, " N"],
    value_clip_eps: Float[Array, ""] | float | None,
) -> Float[Array, ""]:
    """Squared error of a critic, ½ (V − target)², mean over steps.

    With ``value_clip_eps`` each step takes the larger of this error and that of V clipped to its
    old value ± ``value_clip_eps``.
    """
    errors = jnp.square(values - targets)
    if value_clip_eps is not None:
        near = old_values + jnp.clip(values - old_values, -value_clip_eps, value_clip_eps)
        errors = jnp.maximum(errors, jnp.square(near - targets))
    return 0.5 * jnp.mean(errors)


def gate(
    expert_returns: Float[Array, " E"],
    min_return: Float[Array, ""] | float,
    width: Float[Array, ""] | float,
) -> Float[Array, " E"]:
    """Share of the observer's gradient that each expert takes: clip((R_c − α) / width, 0, 1).

    It is zero for an expert whose return R_c is at most α = ``min_return``, or unknown (nan).
    """
    expert_returns = jnp.where(jnp.isnan(expert_returns), min_return, expert_returns)
    return jnp.clip((expert_returns - min_return) / width, 0.0, 1.0)


def value_loss(
    values: Float[Array, "T V"],
    targets: Float[Array, " T"],
    variances: Float[Array, " T"],
    weights: Float[Array, " T"],
) -> Float[Array, ""]:
    """½ Σ_t w_t [(V(s_t) − target_t)² + variance_t], averaged over columns of V (paper, Eq. 4)."""
    errors = jnp.mean(jnp.square(values - targets[:, None]), axis=-1)
    return _weighted_sum(0.5 * (errors + variances), weights)


def expert_loss(expert: LossInputs) -> Loss:
    """The experts' term for a trajectory of π_c: Ã_c(t) = R(t) − V_c(s_t)  (paper, Eq. 5).

    V_c is the only column of values.
    """
    return _loss(expert, 1.0)


def observer_loss(observer: LossInputs, beta: Float[Array, ""] | float) -> Loss:
    """The observer's term for a trajectory of π_o: Ã_o(t) = −β R(t) − V_o(s_t)  (paper, Eq. 5).

    With separate critics ``values`` is V_o alone. With the shared critic of Eq. 4 as printed it
    holds every V_c(s_t): each regresses on −β R(t), and their mean, the expectation over the
    expert that the paper draws at each state, is the baseline. The weight of the observer's return
    against the experts' is β ≥ 0.
    """
    return _loss(observer, -beta)


def _loss(trajectory: LossInputs, scale: Float[Array, ""] | float) -> Loss:
    """Loss of the policy that acted, which ascends ``scale`` times the return."""
    targets, variances = scale * trajectory.returns, scale**2 * trajectory.variances
    advantages = targets - jnp.mean(trajectory.values, axis=-1)
    return Loss(
        policy=-_weighted_sum(
            trajectory.log_probs * jax.lax.stop_gradient(advantages), trajectory.weights
        ),
        value=value_loss(trajectory.values, targets, variances, trajectory.weights),
        entropy=_weighted_sum(trajectory.entropies, trajectory.weights),
    )


def _weighted_sum(terms: Float[Array, " T"], weights: Float[Array, " T"]) -> Float[Array, ""]:
    """Weighted sum; a term of weight zero is left out even where it is not finite."""
    return jnp.sum(jnp.where(weights > 0, weights * terms, 0.0))


def dual_step(
    multipliers: Float[Array, " E"],
    expert_returns: Float[Array, " E"],
    min_return: Float[Array, ""] | float,
    step_size: Float[Array, ""] | float,
    largest: Float[Array, ""] | float = 1e3,
) -> Float[Array, " E"]:
    """One step of multiplicative ascent on the multipliers of the constrained form (paper, Eq. 2).

        min_θ J(π_o)  subject to  J(π_c) ≥ α for every expert c
        λ_c ← λ_c exp(η (α − J(π_c))),   kept in [1 / largest, largest]

    Each expert has its own multiplier, so that no expert is sacrificed for the others. The bounds
    let a satisfied constraint become active again quickly. The step size η is per unit of return.
    """
    grown = multipliers * jnp.exp(step_size * (min_return - expert_returns))
    return jnp.clip(grown, 1.0 / largest, largest)


def dual_weights(multipliers: Float[Array, " E"]) -> tuple[Float[Array, " E"], Float[Array, ""]]:
    """Weights of each expert's and of the observer's return: λ_c / (1 + mean λ), 1 / (1 + mean λ).

    The divisor keeps the size of the gradient independent of λ. No gradient flows through them.
    """
    multipliers = jax.lax.stop_gradient(multipliers)
    divisor = 1.0 + jnp.mean(multipliers)
    return multipliers / divisor, 1.0 / divisor


def dual_objective(
    expert_returns: Float[Array, " E"],
    observer_return: Float[Array, ""],
    multipliers: Float[Array, " E"],
) -> Float[Array, ""]:
    """The objective of θ between dual steps: (mean_c λ_c J(π_c) − J(π_o)) / (1 + mean_c λ_c)."""
    expert_weights, observer_weight = dual_weights(multipliers)
    return jnp.mean(expert_weights * expert_returns) - observer_weight * observer_return
