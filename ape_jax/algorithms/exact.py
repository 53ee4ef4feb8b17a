"""Training without sampling: gradient ascent on an exact objective of a finite MDP.

A whole run is a pure function of a key and of numbers. It can be compiled, mapped over keys and
over hyperparameters such as β, and differentiated in them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ape_jax.core import tabular
from ape_jax.core.tabular import FiniteMDP
from ape_jax.settings.names import ObserverWeights
from ape_jax.types import PRNGKey

ExactObjective = Callable[[Float[Array, "E S A"], Float[Array, ""]], Float[Array, ""]]
"""Maps every expert's logits, and the share of the run that is done in [0, 1), to the objective."""


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
      key: draws the first logits; experts with equal logits would stay equal.
      mdp: the process; only its numbers of states and actions are used here.
      objective_fn: the objective.
      num_experts: E.
      num_updates: Adam steps; static.
      learning_rate: learning rate at the start.
      lr_end_fraction: fraction of it that is left at the end; it falls along a half cosine.
      weight_decay: decoupled weight decay of the logits (AdamW), times the learning rate. It keeps
        policies soft where the objective depends little on them, so that gradients do not vanish.
    """
    # The schedule is applied by hand, because optax's checks its arguments, which may be traced.
    # eps_root gives the square root a derivative where a gradient is zero, as in terminal states.
    optimizer = optax.scale_by_adam(eps_root=1e-30)
    logits = jax.random.normal(key, (num_experts, mdp.num_states, mdp.num_actions))

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
    """Train an ensemble by gradient ascent on the exact J(PE) − β J(π_o) (paper, Eq. 3).

    The learning rate is constant. The other arguments are those of ``tabular.exact_objective``
    and ``ascend``.
    """

    def objective_fn(logits, _):
        return tabular.exact_objective(
            logits,
            mdp,
            beta,
            weights=weights,
            temperature=temperature,
            differentiate_weights=differentiate_weights,
        )

    return ascend(key, mdp, objective_fn, num_experts, num_updates, learning_rate)
