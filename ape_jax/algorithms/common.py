"""Code that both algorithms use: metrics, labels for the optimiser, and the dual step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ape_jax.algorithms.task import Task
from ape_jax.config import Hypers
from ape_jax.core import mixture, objective, tabular
from ape_jax.networks import EnsembleParams
from ape_jax.types import LogWeightsFn

INIT_MULTIPLIER = 3.0
"""First multiplier of every expert: training starts as the penalised form with β = 1/3."""


class Metrics(NamedTuple):
    """Numbers that describe one update.

    With pg, returns are undiscounted means over the episodes of the update. With ppo they are means
    over about the last B episodes of each policy, and nan until its first episode has ended.
    """

    pe_return: Float[Array, ""]
    """Mean return of all experts."""
    expert_returns: Float[Array, " E"]
    observer_return: Float[Array, ""]
    """Mean return of the observer trained against, at its weights and temperature. It counts the
    reward r̃ where one is given."""
    policy_loss: Float[Array, ""]
    """Sum of the policy losses of both terms."""
    value_loss: Float[Array, ""]
    """Sum of the losses of all critics."""
    entropy: Float[Array, ""]
    """Mean entropy of the experts' policies over their steps, in nats."""
    grad_norm: Float[Array, ""]
    """Global norm of the gradient of the heads, before clipping."""
    live_steps: Float[Array, ""]
    """Environment steps of experts and observer, without those that pad episodes to the limit."""
    classifier_loss: Float[Array, ""] | None = None
    """Cross-entropy of the learned weights on the experts' steps, in nats per step: log E at the
    start, lower where states tell experts apart. None where weights are not learned."""
    multipliers: Float[Array, " E"] | None = None
    """λ_c of the constrained form, before the dual step; None without multipliers."""
    calibration_error: Float[Array, ""] | None = None
    """Expected calibration error of the learned weights on steps that they were not yet fitted to;
    None where weights are not learned, and with pg."""


def init_multipliers(num_experts: int, hypers: Hypers) -> Float[Array, " E"] | None:
    """The first multipliers of the constrained form; None in the penalised form."""
    return None if hypers.min_return is None else jnp.full(num_experts, INIT_MULTIPLIER)


def update_multipliers(
    multipliers: Float[Array, " E"] | None, expert_returns: Float[Array, " E"], hypers: Hypers
) -> Float[Array, " E"] | None:
    """One dual step of the constrained form (paper, Eq. 2); None stays None.

    The returns are undiscounted means of this update. Where one is nan, its multiplier stays as it
    is. They need no averaging over updates, because the logarithm of a multiplier sums them.
    """
    if multipliers is None or hypers.min_return is None:
        return multipliers
    expert_returns = jnp.where(jnp.isnan(expert_returns), hypers.min_return, expert_returns)
    numbers = (hypers.min_return, hypers.multiplier_rate, hypers.max_multiplier)
    return objective.dual_step(multipliers, expert_returns, *numbers)


def part_labels(
    params: EnsembleParams, names: tuple[str, ...] = EnsembleParams._fields
) -> EnsembleParams:
    """The name of the part that each array belongs to, for ``optax.partition``."""
    named = zip(names, params, strict=True)
    return EnsembleParams(*(jax.tree.map(lambda _, n=name: n, part) for name, part in named))


def expert_log_weights(task: Task, params: EnsembleParams) -> LogWeightsFn:
    """The observer's weights log w_c as a function of the observation; no gradient flows through.

    They come from the classifier where it is trained, from the exact posterior of a finite MDP
    where that is asked for, and are uniform otherwise.
    """
    networks = task.networks
    if params.classifier is not None:
        classifier = jax.lax.stop_gradient(params.classifier)
        return networks.tabulate(lambda o: networks.expert_log_weights(classifier, o))
    if task.config.observer != "posterior" or task.world.mdp is None:
        uniform = mixture.uniform_log_weights(networks.num_experts)
        return lambda observation: uniform
    policies = jnp.exp(networks.tabulate_experts(params.heads))
    weights = tabular.observer_weights(task.world.mdp, policies, "posterior")
    weights = jax.lax.stop_gradient(weights)
    return lambda state: weights[state]
