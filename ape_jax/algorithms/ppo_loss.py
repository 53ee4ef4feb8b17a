"""The loss of PPO-APE on a minibatch, and the epochs of minibatches in an update."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Shaped

from ape_jax.algorithms.common import part_labels
from ape_jax.config import PPOConfig, PPOHypers
from ape_jax.core import objective, random
from ape_jax.core.distributions import Categorical
from ape_jax.core.statistics import expected_calibration_error
from ape_jax.networks import EnsembleParams, Networks
from ape_jax.types import Params, PRNGKey


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


def optimizer(config: PPOConfig, hypers: PPOHypers) -> optax.GradientTransformation:
    """Adam, with the gradient of each head and of each critic clipped on its own.

    Rates fall linearly over all steps of the optimiser; the classifier's rate is constant.
    """
    num_steps = config.num_updates * config.num_epochs * config.num_minibatches
    clip = optax.clip_by_global_norm(hypers.max_grad_norm)
    # One clip for all experts would let a steep one shrink the steps of the others.
    clip_each = optax.stateless(
        lambda rows, _: jax.vmap(lambda row: clip.update(row, optax.EmptyState())[0])(rows)
    )

    def adam(rate, num_rows):
        rates = optax.linear_schedule(rate, hypers.lr_end_fraction * rate, max(num_steps - 1, 1))
        return in_rows(optax.chain(clip_each, optax.adam(rates, eps=1e-5)), num_rows)

    untrained = optax.set_to_zero()
    classifier = in_rows(optax.adam(hypers.classifier_learning_rate, eps=1e-5), 1)
    return optax.partition(
        {
            "heads": adam(hypers.learning_rate, config.num_experts),
            "expert_critics": adam(hypers.critic_learning_rate, config.num_experts),
            "observer_critic": (
                untrained if config.observer == "none" else adam(hypers.critic_learning_rate, 1)
            ),
            "classifier": classifier if config.observer == "learned" else untrained,
        },
        part_labels,
    )


def in_rows(inner: optax.GradientTransformation, num_rows: int) -> optax.GradientTransformation:
    """A transformation of all arrays of a tree as one matrix, with a row for each network.

    One operation then does what takes many small ones array by array.
    """

    def as_rows(tree):
        return jnp.concatenate([x.reshape(num_rows, -1) for x in jax.tree.leaves(tree)], axis=1)

    def update(grads, state, params=None):
        del params
        leaves, tree = jax.tree.flatten(grads)
        rows, state = inner.update(as_rows(grads), state)
        ends = list(itertools.accumulate(x.size // num_rows for x in leaves))
        parts = jnp.split(rows, ends[:-1], axis=1)
        return tree.unflatten(map(jnp.reshape, parts, map(jnp.shape, leaves))), state

    return optax.GradientTransformation(lambda params: inner.init(as_rows(params)), update)


def run_epochs(
    key: PRNGKey,
    config: PPOConfig,
    params: EnsembleParams,
    opt_state: optax.OptState,
    batch: Batch,
    loss: Callable[[EnsembleParams, Batch], tuple[Float[Array, ""], LossParts]],
    hypers: PPOHypers,
) -> tuple[EnsembleParams, optax.OptState, LossParts, Float[Array, ""]]:
    """Pass over the batch several times, in new random minibatches each time.

    Returns:
      Parameters, state of the optimiser, and the means over all minibatches of the parts of the
      loss and of the norm of the heads' gradient.
    """
    step = optimizer(config, hypers)

    def split(key: PRNGKey, steps: Steps, axis: int) -> Steps:
        """Shuffle along an axis, and cut into minibatches [P, …]; all experts in one order."""
        order = random.permutation(key, steps.log_prob.shape[axis])
        order = order.reshape(config.num_minibatches, -1)
        return jax.tree.map(lambda x: jnp.moveaxis(jnp.take(x, order, axis=axis), axis, 0), steps)

    def minibatch(carry, part):
        params, opt_state = carry
        grads, parts = jax.grad(loss, has_aux=True)(params, part)
        changes, opt_state = step.update(grads, opt_state, params)
        params = optax.apply_updates(params, changes)
        return (params, opt_state), (parts, optax.tree.norm(grads.heads))

    def epoch(carry, key):
        key_experts, key_observer = random.split(key, 2)
        observer = None if batch.observer is None else split(key_observer, batch.observer, 0)
        minibatches = Batch(split(key_experts, batch.experts, 1), observer)
        return jax.lax.scan(minibatch, carry, minibatches)

    (params, opt_state), measured = jax.lax.scan(
        epoch, (params, opt_state), random.split(key, config.num_epochs)
    )
    parts, grad_norm = jax.tree.map(jnp.mean, measured)
    return params, opt_state, parts, grad_norm
