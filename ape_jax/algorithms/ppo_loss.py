"""The loss of PPO-APE on a minibatch."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from ape_jax.config import PPOHypers
from ape_jax.core import objective
from ape_jax.core.distributions import Categorical
from ape_jax.core.statistics import expected_calibration_error
from ape_jax.networks import EnsembleParams, Networks
from ape_jax.types import Params


class Steps(NamedTuple):
    """Steps [N] of one policy, as the loss needs them."""

    observation: Shaped[Array, "N ..."]
    """The observation before the action."""
    action: Shaped[Array, "N ..."]
    log_prob: Float[Array, " N"]
    """Log-probability of the action when it was taken."""
    value: Float[Array, " N"]
    """V(observation) when the action was taken."""
    advantage: Float[Array, " N"]
    """In standard deviations of all advantages of this policy in the rollout."""
    target: Float[Array, " N"]
    """Target of the critic."""
    log_weights: Float[Array, "N E"] | None = None
    """The observer's log w_c; None at steps of experts."""


class Batch(NamedTuple):
    """Steps [E, N] of the experts and [N'] of the observer, if there is one."""

    experts: Steps
    observer: Steps | None


class LossWeights(NamedTuple):
    """Weights of each term and each expert in an update; no gradient flows through them."""

    experts: Float[Array, " E"]
    """Weight of each expert's own term: 1, or λ_c / (1 + mean λ) of the constrained form."""
    observer: Float[Array, ""]
    """Weight of the observer's term: β, or 1 / (1 + mean λ)."""
    gates: Float[Array, " E"]
    """Share of the observer's gradient that each expert takes."""
    lengths: Float[Array, " E"]
    """Mean length of each expert's episodes, as a share of the sum over experts. The observer's
    model p(c|s) draws an expert for a whole episode and so counts every step of long episodes,
    while a rollout has as many steps of each expert."""


class LossParts(NamedTuple):
    """The parts of the loss of a minibatch, as ``Metrics`` has them."""

    policy: Float[Array, ""]
    value: Float[Array, ""]
    entropy: Float[Array, ""]
    classifier: Float[Array, ""] | None
    """None where the observer's weights are not learned."""


def minibatch_loss(
    params: EnsembleParams,
    networks: Networks,
    batch: Batch,
    hypers: PPOHypers,
    temperature: Float[Array, ""] | float,
    weights: LossWeights,
) -> tuple[Float[Array, ""], LossParts]:
    """The PPO-APE loss: the mean of the experts' clipped surrogates, and β times the observer's.

    The losses of the critics and of the classifier are added to it, and the entropy is subtracted.
    """

    def critic_loss(critic, steps):
        values = networks.value(critic, steps.observation)
        return objective.clipped_value_loss(
            values, steps.value, steps.target, hypers.value_clip_eps
        )

    def expert_losses(head, critic, steps):
        def at_step(policy, action):
            return policy.log_prob(action), policy.entropy()

        policies = networks.distribution(head, steps.observation)
        log_probs, entropies = jax.vmap(at_step)(policies, steps.action)
        surrogate = objective.clipped_surrogate(
            log_probs, steps.log_prob, steps.advantage, hypers.clip_eps
        )
        return surrogate, critic_loss(critic, steps), jnp.mean(entropies)

    def observer_surrogate(steps):
        def at_step(policies, action, log_weights):
            return policies.pool(log_weights).temper(temperature).log_prob(action)

        policies = networks.distributions(params.heads, steps.observation)
        policies = jax.tree.map(_gated(weights.gates), policies)
        log_probs = jax.vmap(at_step, (1, 0, 0))(policies, steps.action, steps.log_weights)
        return objective.clipped_surrogate(
            log_probs, steps.log_prob, -steps.advantage, hypers.clip_eps
        )

    surrogates, values, entropies = jax.vmap(expert_losses)(
        params.heads, params.expert_critics, batch.experts
    )
    policy, value = jnp.mean(weights.experts * surrogates), jnp.sum(values)
    entropy = jnp.mean(entropies)
    classifier = None
    if params.classifier is not None:
        classifier = classifier_loss(networks, params.classifier, batch.experts, weights.lengths)
    if batch.observer is not None:
        policy = policy + weights.observer * observer_surrogate(batch.observer)
        value = value + critic_loss(params.observer_critic, batch.observer)
    total = policy + value - hypers.ent_coef * entropy
    total = total + (0.0 if classifier is None else classifier)
    return total, LossParts(policy, value, entropy, classifier)


def _gated(gates: Float[Array, " E"]) -> Callable:
    """Leave values [E, …] as they are, and multiply the gradient of each expert by its gate."""

    def gated(x):
        shares = gates.reshape(-1, *[1] * (x.ndim - 1))
        return shares * x + (1.0 - shares) * jax.lax.stop_gradient(x)

    return gated


def classifier_loss(
    networks: Networks, classifier: Params, experts: Steps, lengths: Float[Array, " E"]
) -> Float[Array, ""]:
    """Cross-entropy of q(c|s) on the steps [E, N] of all experts, in nats per step.

    Its minimum is the posterior w_c(s) = d_c(s) / Σ_k d_k(s) of ``posterior_log_weights``: the
    occupancy of an expert is the share of its steps in a state times the length of its episodes.
    """
    log_weights = networks.expert_log_weights(classifier, experts.observation)
    own = jax.vmap(Categorical.log_prob)(Categorical(log_weights), jnp.arange(len(lengths)))
    return -jnp.sum(lengths * jnp.mean(own, axis=1))


def calibration_error(
    log_weights: Float[Array, "*steps E"], lengths: Float[Array, " E"]
) -> Float[Array, ""]:
    """Expected calibration error of q(c|s) on as many steps of each expert, one after the other.

    Steps are weighted as in ``classifier_loss``.
    """
    num_experts = len(lengths)
    log_weights = log_weights.reshape(-1, num_experts)
    num_steps = len(log_weights) // num_experts
    labels = jnp.repeat(jnp.arange(num_experts), num_steps)
    return expected_calibration_error(log_weights, labels, jnp.repeat(lengths, num_steps))
