"""The loss of PPO-APE on a minibatch: what it needs, its weights, and its parts."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from ape_jax.config import Hypers
from ape_jax.core import objective
from ape_jax.core import statistics as calibration
from ape_jax.networks import EnsembleParams, Networks
from ape_jax.types import Params


class Steps(NamedTuple):
    """What a minibatch needs of steps [N] of one policy."""

    observation: Shaped[Array, "N ..."]
    """What the actor saw."""
    action: Shaped[Array, "N ..."]
    """What it did."""
    log_prob: Float[Array, " N"]
    """When it was taken."""
    value: Float[Array, " N"]
    """Then."""
    advantage: Float[Array, " N"]
    """In standard deviations of all of this policy's in the segment."""
    target: Float[Array, " N"]
    """Of the critic."""
    log_weights: Float[Array, "N E"] | None = None
    """Of the observer's experts, at its steps."""


class Batch(NamedTuple):
    """A segment, or a minibatch of it."""

    experts: Steps
    """[E, T * B]."""
    observer: Steps | None
    """[T * M]; None where nobody observes."""


class Weights(NamedTuple):
    """How much each expert counts in the terms of an update; constants of the loss."""

    experts: Float[Array, " E"]
    """Of their own term: one, or λ_c / (1 + mean λ) of the constrained form."""
    observer: Float[Array, ""]
    """Of the observer's: β, or 1 / (1 + mean λ)."""
    gates: Float[Array, " E"]
    """Share of the observer's gradient that each takes."""
    lengths: Float[Array, " E"]
    """Of their episodes, as shares of the sum of all: an expert is drawn for an episode, so p(c|s)
    counts every step of long ones, where a segment has as many steps of each."""


class Parts(NamedTuple):
    """Of the loss of a minibatch."""

    policy: Float[Array, ""]
    """Clipped surrogates."""
    value: Float[Array, ""]
    """Of the critics."""
    entropy: Float[Array, ""]
    """Mean entropy of the experts' policies, in nats."""
    classifier: Float[Array, ""] | None
    """Cross-entropy of the classifier; None without one."""


def minibatch_loss(
    params: EnsembleParams,
    networks: Networks,
    batch: Batch,
    hypers: Hypers,
    temperature: Float[Array, ""] | float,
    weights: Weights,
) -> tuple[Float[Array, ""], Parts]:
    """The PPO-APE loss: the mean of the experts' clipped surrogates, and β times the observer's.

    Args:
      params: heads, critics, classifier.
      networks: what they mean.
      batch: steps of every expert [E, N] and of the observer [N'].
      hypers: clipping, entropy bonus.
      temperature: of the observer.
      weights: of the terms and of the experts in them.

    Returns:
      The scalar loss, and its parts.
    """

    def expert_block(head, critic, steps):
        def at_step(observation, action):
            policy = networks.distribution(head, observation)
            return policy.log_prob(action), policy.entropy()

        log_probs, entropies = jax.vmap(at_step)(steps.observation, steps.action)
        surrogate = objective.clipped_surrogate(
            log_probs, steps.log_prob, steps.advantage, hypers.clip_eps
        )
        return surrogate, critic_loss(critic, steps), jnp.mean(entropies)

    def critic_loss(critic, steps):
        values = jax.vmap(networks.value, (None, 0))(critic, steps.observation)
        return objective.clipped_value_loss(
            values, steps.value, steps.target, hypers.value_clip_eps
        )

    policies, values, entropies = jax.vmap(expert_block)(
        params.heads, params.expert_critics, batch.experts
    )
    policy, value, entropy = (
        jnp.mean(weights.experts * policies),
        jnp.sum(values),
        jnp.mean(entropies),
    )
    classifier = None
    if params.classifier is not None:
        classifier = classifier_loss(networks, params.classifier, batch.experts, weights.lengths)
    steps = batch.observer
    if steps is not None:

        def at_observer_step(observation, action, log_weights):
            policies = networks.distributions(params.heads, observation)
            policies = jax.tree.map(_gated(weights.gates), policies)
            return policies.pool(log_weights).temper(temperature).log_prob(action)

        log_probs = jax.vmap(at_observer_step)(steps.observation, steps.action, steps.log_weights)
        policy = policy + weights.observer * objective.clipped_surrogate(
            log_probs, steps.log_prob, -steps.advantage, hypers.clip_eps
        )
        value = value + critic_loss(params.observer_critic, steps)
    total = policy + value - hypers.ent_coef * entropy
    total = total + (0.0 if classifier is None else classifier)
    return total, Parts(policy, value, entropy, classifier)


def _gated(gates: Float[Array, " E"]) -> Callable:
    """The same values, with so much of the gradient."""

    def gated(x):
        shares = gates.reshape(-1, *[1] * (x.ndim - 1))
        return shares * x + (1.0 - shares) * jax.lax.stop_gradient(x)

    return gated


def classifier_loss(
    networks: Networks, classifier: Params, experts: Steps, lengths: Float[Array, " E"]
) -> Float[Array, ""]:
    """Cross-entropy of q(c|s) on the steps [E, N] of all experts, in nats a step.

    Its minimum is the posterior w_c(s) = d_c(s) / Σ_k d_k(s) of ``posterior_log_weights``: the
    occupancy of an expert is the share of its steps in a state times the length of its episodes.
    """
    log_weights = _log_weights(networks, classifier, experts)
    own = jnp.mean(jnp.diagonal(log_weights, axis1=0, axis2=2), axis=0)
    return -jnp.sum(lengths * own)


def calibration_of(
    networks: Networks, classifier: Params, experts: Steps, lengths: Float[Array, " E"]
) -> Float[Array, ""]:
    """How far the classifier's confidence is from its accuracy on steps [E, N] weighed likewise."""
    log_weights = _log_weights(networks, classifier, experts)
    num_experts, num_steps = log_weights.shape[:2]
    labels = jnp.repeat(jnp.arange(num_experts), num_steps)
    return calibration.expected_calibration_error(
        log_weights.reshape(-1, num_experts), labels, jnp.repeat(lengths, num_steps)
    )


def _log_weights(networks: Networks, classifier: Params, experts: Steps) -> Float[Array, "E N E"]:
    at_steps = jax.vmap(jax.vmap(networks.expert_log_weights, (None, 0)), (None, 0))
    return at_steps(classifier, experts.observation)
