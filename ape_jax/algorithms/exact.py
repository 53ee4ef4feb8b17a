"""Training without sampling: gradient ascent on an exact objective of a finite MDP.

Everything is a pure function of a key and of numbers, so a whole run jits, vmaps over keys and over
hyperparameters such as β, and has derivatives in them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ape_jax.core import tabular
from ape_jax.core.tabular import FiniteMDP
from ape_jax.types import ObserverWeights, PRNGKey

ExactObjective = Callable[[Float[Array, "E S A"], Float[Array, ""]], Float[Array, ""]]
"""Every expert's logits, and the share of the run that is done in [0, 1), to what is maximised."""


def ascend(
    key: PRNGKey,
    mdp: FiniteMDP,
    objective_fn: ExactObjective,
    num_experts: int,
    num_updates: int,
    learning_rate: Float[Array, ""] | float,
    lr_end_fraction: Float[Array, ""] | float = 1.0,
    weight_decay: Float[Array, ""] | float = 0.0,
) -> Float[Array, "E S A"]:
    """Maximise an objective of tabular experts by Adam from logits drawn N(0, 1).

    Args:
      key: draws the first logits; heads that start alike stay alike.
      mdp: the process; only its numbers of states and actions count here.
      objective_fn: of the logits and of progress, so that its weights may follow a schedule.
      num_experts: E.
      num_updates: Adam steps; static.
      learning_rate: Adam step at the start, in logits.
      lr_end_fraction: share of it that is left at the end; it falls along a half cosine.
      weight_decay: pull of each step towards zero logits, decoupled (AdamW), as a share of the
        logits times the learning rate. Keeps policies soft where little is at stake, so that
        gradients do not vanish there.

    Returns:
      The last logits.
    """
    # The schedule is applied by hand: optax's checks its arguments, which may be traced here. Where
    # a gradient is zero, as at ends, the root of its square would have no derivative.
    optimizer = optax.scale_by_adam(eps_root=1e-30)
    shape = (num_experts, mdp.num_states, mdp.num_actions)
    logits = jax.random.normal(key, shape)

    def update(carry, index):
        logits, opt_state = carry
        progress = index / num_updates
        gradient = jax.grad(objective_fn)(logits, progress)
        direction, opt_state = optimizer.update(gradient, opt_state)
        cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        rate = learning_rate * (lr_end_fraction + (1.0 - lr_end_fraction) * cosine)
        return (logits + rate * (direction - weight_decay * logits), opt_state), None

    carry = (logits, optimizer.init(logits))
    (logits, _), _ = jax.lax.scan(update, carry, jnp.arange(num_updates))
    return logits


def train(
    key: PRNGKey,
    mdp: FiniteMDP,
    beta: Float[Array, ""] | float,
    *,
    num_experts: int = 2,
    weights: ObserverWeights = "uniform",
    temperature: Float[Array, ""] | float = 1.0,
    num_updates: int = 1500,
    learning_rate: Float[Array, ""] | float = 0.05,
    differentiate_weights: bool = False,
) -> Float[Array, "E S A"]:
    """An ensemble that ascends J(PE) − β J(π_o), both exact (paper, Eq. 3).

    Args:
      key: draws the first logits.
      mdp: the process.
      beta: β ≥ 0.
      num_experts: E.
      weights: the observer's model of the expert given the state.
      temperature: the observer deploys π_o^(1/T), normalised.
      num_updates: Adam steps; static.
      learning_rate: Adam step, constant, in logits.
      differentiate_weights: let gradients flow through w_c(s) too.

    Returns:
      The last logits.
    """

    def objective_fn(logits, progress):
        del progress
        return tabular.exact_objective(
            logits,
            mdp,
            beta,
            weights=weights,
            temperature=temperature,
            differentiate_weights=differentiate_weights,
        )

    return ascend(key, mdp, objective_fn, num_experts, num_updates, learning_rate)
