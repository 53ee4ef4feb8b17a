"""The epochs of minibatches in an update of PPO-APE, and their optimiser."""

import itertools
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
    """Adam on ``as_rows``, with the gradient of each head and of each critic clipped on its own.

    Rates fall linearly over all steps of the optimiser; the classifier's rate is constant.
    """
    num_steps = config.num_updates * config.num_epochs * config.num_minibatches
    clip = optax.clip_by_global_norm(hypers.max_grad_norm)
    # One clip for all experts would let a steep one shrink the steps of the others.
    clip_each = optax.stateless(
        lambda rows, _: jax.vmap(lambda row: clip.update(row, optax.EmptyState())[0])(rows)
    )

    def adam(rate):
        rates = optax.linear_schedule(rate, hypers.lr_end_fraction * rate, max(num_steps - 1, 1))
        return optax.chain(clip_each, optax.adam(rates, eps=1e-5))

    return optax.partition(
        {
            "heads": adam(hypers.learning_rate),
            "expert_critics": adam(hypers.critic_learning_rate),
            "observer_critic": (
                optax.set_to_zero()
                if config.observer == "none"
                else adam(hypers.critic_learning_rate)
            ),
            "classifier": optax.adam(hypers.classifier_learning_rate, eps=1e-5),
        },
        part_labels,
    )


def as_rows(params: EnsembleParams, num_experts: int) -> EnsembleParams:
    """Each part as one matrix with a row for each of its networks.

    The optimiser then does by one operation what takes it many small ones, array by array.
    """

    def matrix(part, size):
        return jnp.concatenate([x.reshape(size, -1) for x in jax.tree.leaves(part)], axis=1)

    parts = zip(params, _num_rows(num_experts), strict=True)
    return EnsembleParams(*(None if part[0] is None else matrix(*part) for part in parts))


def from_rows(rows: EnsembleParams, params: EnsembleParams, num_experts: int) -> EnsembleParams:
    """The parts in the arrays of ``params``, of which only the shapes count."""

    def arrays(matrix, part, size):
        leaves, tree = jax.tree.flatten(part)
        ends = itertools.accumulate(x.size // size for x in leaves)
        columns = jnp.split(matrix, list(ends)[:-1], axis=1)
        return jax.tree.unflatten(tree, map(jnp.reshape, columns, map(jnp.shape, leaves)))

    parts = zip(rows, params, _num_rows(num_experts), strict=True)
    return EnsembleParams(*(None if part[0] is None else arrays(*part) for part in parts))


def _num_rows(num_experts: int) -> tuple[int, ...]:
    """Networks in each part."""
    return num_experts, num_experts, 1, 1


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
    step, size = optimizer(config, hypers), config.num_experts

    def split(key: PRNGKey, steps: Steps, axis: int) -> Steps:
        """Shuffle along an axis, and cut into minibatches [P, …]; all experts in one order."""
        order = random.permutation(key, steps.log_prob.shape[axis])
        order = order.reshape(config.num_minibatches, -1)
        return jax.tree.map(lambda x: jnp.moveaxis(jnp.take(x, order, axis=axis), axis, 0), steps)

    def minibatch(carry, part):
        rows, opt_state = carry
        grads, parts = jax.grad(loss, has_aux=True)(from_rows(rows, params, size), part)
        grads = as_rows(grads, size)
        changes, opt_state = step.update(grads, opt_state)
        return (optax.apply_updates(rows, changes), opt_state), (
            parts,
            jnp.linalg.norm(grads.heads),
        )

    def epoch(carry, key):
        key_experts, key_observer = random.split(key, 2)
        observer = None if batch.observer is None else split(key_observer, batch.observer, 0)
        minibatches = Batch(split(key_experts, batch.experts, 1), observer)
        return jax.lax.scan(minibatch, carry, minibatches)

    start = (as_rows(params, size), opt_state)
    (rows, opt_state), measured = jax.lax.scan(epoch, start, random.split(key, config.num_epochs))
    parts, grad_norm = jax.tree.map(jnp.mean, measured)
    return from_rows(rows, params, size), opt_state, parts, grad_norm
