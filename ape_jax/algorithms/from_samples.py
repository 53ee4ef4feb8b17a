"""One PG-APE update on samples that the user brings, with the interface of the original listing."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from ape_jax.algorithms.common import TrainState, apply_gradients
from ape_jax.algorithms.pg import total_loss
from ape_jax.config import Hypers
from ape_jax.core import mixture, objective
from ape_jax.core.distributions import Categorical
from ape_jax.networks import EnsembleParams, Networks
from ape_jax.types import SettingError


class Batch(NamedTuple):
    """Samples from anywhere: an environment, a log, a simulator."""

    observation: Shaped[Array, "N ..."]
    """What the actor saw."""
    action: Int[Array, " N"]
    """What it did."""
    returns: Float[Array, " N"]
    """Return to go R(t) that followed the action."""
    expert: Int[Array, " N"] | None = None
    """Which expert acted; None in a batch of the observer's."""


class BatchLosses(NamedTuple):
    """Parts of the loss before the update, averaged over the samples of each batch."""

    expert_policy: Float[Array, ""]
    """Policy loss of the experts' samples."""
    expert_value: Float[Array, ""]
    """Value loss of the experts' samples."""
    observer_policy: Float[Array, ""]
    """Policy loss of the observer's samples."""
    observer_value: Float[Array, ""]
    """Value loss of the observer's samples."""


def ape_update(
    state: TrainState, expert_batch: Batch, observer_batch: Batch, hypers: Hypers
) -> tuple[TrainState, BatchLosses]:
    """One jitted PG-APE update; the observer is the uniform mixture at ``hypers.temperature``.

    Each sample counts as a trajectory of one step in Eqs. 4 and 5 of the paper. A batch of whole
    trajectories therefore gives each term divided by the mean length of its own trajectories. Where
    the observer's are longer, as they become, its term shrinks: multiply β by the observer's mean
    length over the experts' to get the balance of ``ape_jax.make_train``.

    Shapes and types are checked; values are not, since that would wait for the device: an action or
    expert that does not exist, or a return that is not finite, goes unnoticed.

    Args:
      state: from ``ape_jax.create_state``.
      expert_batch: samples of the experts, with the index of the one that acted.
      observer_batch: samples of the observer; ``expert`` stays None.
      hypers: learning rates, β, temperature, entropy bonus, clipping norm.

    Returns:
      The next state, and the losses at the given one.

    Raises:
      SettingError: a batch whose shapes do not fit each other or the networks.
    """
    expert_batch, observer_batch = _as_arrays(expert_batch), _as_arrays(observer_batch)
    _check("expert_batch", expert_batch, state.networks, needs_expert=True)
    _check("observer_batch", observer_batch, state.networks, needs_expert=False)
    return _ape_update(state, expert_batch, observer_batch, hypers)


@jax.jit
def _ape_update(state, expert_batch, observer_batch, hypers):
    (_, (expert, observer)), grads = jax.value_and_grad(_loss, has_aux=True)(
        state.params, state.networks, expert_batch, observer_batch, hypers
    )
    losses = BatchLosses(expert.policy, expert.value, observer.policy, observer.value)
    return apply_gradients(state, grads, hypers), losses


def _loss(params: EnsembleParams, networks: Networks, expert_batch, observer_batch, hypers):
    log_weights = mixture.uniform_log_weights(networks.num_experts)

    def expert(observation, action, returns, index):
        log_probs = networks.expert_log_probs(params.heads, observation)[index]
        values = jax.vmap(networks.value, in_axes=(0, None))(params.expert_critics, observation)
        return _one_step(log_probs, action, values[index][None], returns)

    def observer(observation, action, returns):
        log_probs = mixture.observer_log_probs(
            networks.expert_log_probs(params.heads, observation), log_weights, hypers.temperature
        )
        return _one_step(log_probs, action, networks.observer_values(params, observation), returns)

    expert_losses = jax.vmap(objective.expert_loss)(jax.vmap(expert)(*expert_batch))
    observer_losses = jax.vmap(objective.observer_loss, in_axes=(0, None))(
        jax.vmap(observer)(*observer_batch[:3]), hypers.beta
    )
    expert_loss, observer_loss = jax.tree.map(jnp.mean, (expert_losses, observer_losses))
    return total_loss(expert_loss, observer_loss, hypers), (expert_loss, observer_loss)


def _one_step(log_probs, action, values, returns) -> objective.Evaluated:
    """A sample as a trajectory of one step."""
    return objective.Evaluated(
        log_probs=log_probs[action][None],
        values=values[None],
        entropies=Categorical(log_probs).entropy()[None],
        returns=returns[None],
        variances=jnp.zeros(1),
        weights=jnp.ones(1),
    )


def _as_arrays(batch: Batch) -> Batch:
    """Arrays of JAX go through as they are: asking again takes longer than a small update."""

    def as_array(x):
        return x if x is None or isinstance(x, jax.Array) else jnp.asarray(x)

    return Batch(*map(as_array, batch))


def _check(name: str, batch: Batch, networks: Networks, needs_expert: bool) -> None:
    if batch.action.ndim != 1 or not batch.action.size:
        raise SettingError(
            f"{name}.action must hold one action a sample, and one at least; "
            f"got shape {batch.action.shape}"
        )
    expected = (len(batch.action), *networks.observation_shape)
    if batch.observation.shape != expected:
        raise SettingError(
            f"{name}.observation must have shape {expected}, one observation an action; "
            f"got {batch.observation.shape}"
        )
    if needs_expert and batch.expert is None:
        raise SettingError(f"{name}.expert must hold the index of the expert that acted; got None")
    if not needs_expert and batch.expert is not None:
        raise SettingError(f"{name}.expert must be None: the mixture of all experts acted")
    for field in ("action", "returns", "expert"):
        value = getattr(batch, field)
        if value is not None and value.shape != expected[:1]:
            raise SettingError(f"{name}.{field} must have shape {expected[:1]}; got {value.shape}")
    for field in ("action", "expert"):
        value = getattr(batch, field)
        if value is not None and not jnp.issubdtype(value.dtype, jnp.integer):
            raise SettingError(f"{name}.{field} must be integers; got {value.dtype}")
