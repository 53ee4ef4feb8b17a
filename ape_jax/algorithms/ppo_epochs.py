"""The epochs of minibatches in an update of PPO-APE, and the optimiser that steps in them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ape_jax.algorithms.common import part_labels
from ape_jax.algorithms.ppo_loss import Batch, LossParts, Steps
from ape_jax.config import PPOConfig, PPOHypers
from ape_jax.core import random
from ape_jax.networks import EnsembleParams
from ape_jax.types import PRNGKey


def optimizer(config: PPOConfig, hypers: PPOHypers) -> optax.GradientTransformation:
    """Adam, with the gradient of each head and of each critic clipped on its own.

    Rates fall linearly over all steps of the optimiser; the classifier's rate is constant.
    """
    num_steps = config.num_updates * config.num_epochs * config.num_minibatches
    clip = optax.clip_by_global_norm(hypers.max_grad_norm)
    # One clip for all experts would let a steep one shrink the steps of the others.
    clip_each = optax.stateless(
        lambda updates, _: jax.vmap(lambda x: clip.update(x, optax.EmptyState())[0])(updates)
    )

    def adam(rate, clip):
        rates = optax.linear_schedule(rate, hypers.lr_end_fraction * rate, max(num_steps - 1, 1))
        return optax.chain(clip, optax.adam(rates, eps=1e-5))

    return optax.partition(
        {
            "heads": adam(hypers.learning_rate, clip_each),
            "expert_critics": adam(hypers.critic_learning_rate, clip_each),
            "observer_critic": adam(hypers.critic_learning_rate, clip),
            "classifier": optax.adam(hypers.classifier_learning_rate, eps=1e-5),
        },
        part_labels("expert_critics", "observer_critic"),
    )


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
        key_experts, key_observer = jax.random.split(key)
        observer = None if batch.observer is None else split(key_observer, batch.observer, 0)
        minibatches = Batch(split(key_experts, batch.experts, 1), observer)
        return jax.lax.scan(minibatch, carry, minibatches)

    (params, opt_state), measured = jax.lax.scan(
        epoch, (params, opt_state), jax.random.split(key, config.num_epochs)
    )
    parts, grad_norm = jax.tree.map(jnp.mean, measured)
    return params, opt_state, parts, grad_norm
