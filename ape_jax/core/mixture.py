"""The policy of an observer who pools the experts' demonstrations: mixtures, and their deployment.

Everything stays in log space. Log-probabilities of −inf (an action that a head never takes) are
floored at a finite number, so that values and gradients stay finite.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LOG_FLOOR = -1e30
"""Stands for log 0: far below any log-probability, and finite after every sum made here."""


def mixture_log_probs(
    log_probs: Float[Array, "E A"], log_weights: Float[Array, " E"]
) -> Float[Array, " A"]:
    """Log-probabilities of the policy that a cloner of the pooled demonstrations learns at a state.

        log π_o(a|s) = logsumexp_c [ log w_c(s) + log π_c(a|s) ]          (paper, Eq. 1)

    Both arguments are normalised, and so is the result, which is differentiable in both.
    """
    joint = jnp.maximum(log_weights, LOG_FLOOR)[:, None] + jnp.maximum(log_probs, LOG_FLOOR)
    return jnp.maximum(jax.nn.logsumexp(joint, axis=0), LOG_FLOOR)


def temper(
    log_probs: Float[Array, " A"], temperature: Float[Array, ""] | float
) -> Float[Array, " A"]:
    """A policy deployed at a temperature: π_T ∝ π^(1/T).

    T = 1 gives the policy itself, and T = 0 the greedy one, with ties shared evenly. All
    temperatures below 1e-6 are alike: there the rounding of ``log_probs`` decides. The result is
    normalised, and finite for every T ≥ 0, as are its gradients.
    """
    log_probs = jnp.maximum(log_probs, LOG_FLOOR)
    below_best = log_probs - jnp.max(log_probs)
    scaled = jnp.maximum(below_best / jnp.maximum(temperature, 1e-6), LOG_FLOOR)
    return jnp.maximum(jax.nn.log_softmax(scaled), LOG_FLOOR)


def uniform_log_weights(num_experts: int) -> Float[Array, " E"]:
    """The paper's w_c = 1/E, as logarithms: an observer who ignores where each expert goes."""
    return jnp.full(num_experts, -jnp.log(num_experts))


def posterior_log_weights(occupancies: Float[Array, " E"]) -> Float[Array, " E"]:
    """Bayes posterior of the expert at a state, given that one was drawn uniformly per episode.

        w_c(s) = d_c(s) / Σ_k d_k(s)

    The occupancy d_c(s) is how often expert c is expected in the state in one episode. The weights
    are uniform in states that no expert visits.
    """
    return jax.nn.log_softmax(jnp.log(jnp.maximum(occupancies, 1e-30)))


def observer_log_probs(
    log_probs: Float[Array, "E A"],
    log_weights: Float[Array, " E"],
    temperature: Float[Array, ""] | float = 1.0,
) -> Float[Array, " A"]:
    """The observer's policy at a state: the mixture, deployed at a temperature."""
    return temper(mixture_log_probs(log_probs, log_weights), temperature)
