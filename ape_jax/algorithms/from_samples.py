"""One PG-APE update on samples that the user brings, with the interface of the original listing."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ape_jax.algorithms.pg import PGState, apply_gradients
from ape_jax.algorithms.pg_loss import total_loss
from ape_jax.config import PGHypers
from ape_jax.core import mixture, objective
from ape_jax.core.distributions import Categorical
from ape_jax.core.samples import Samples
from ape_jax.networks import EnsembleParams, Networks
from ape_jax.types import SettingError


class SampleLosses(NamedTuple):
    """The parts of the loss before the update, as means over the samples of each term."""

    expert_policy: Float[Array, ""]
    expert_value: Float[Array, ""]
    observer_policy: Float[Array, ""]
    observer_value: Float[Array, ""]


def update_from_samples(
    state: PGState, expert_samples: Samples, observer_samples: Samples, hypers: PGHypers
) -> tuple[PGState, SampleLosses]:
    """One jitted PG-APE update; the observer is the uniform mixture at ``hypers.temperature``.

    Each sample counts as a trajectory of one step in Eqs. 4 and 5 of the paper. With the samples of
    whole trajectories each term is therefore divided by the mean length of its own trajectories,
    and the observer's term shrinks as its trajectories get longer. To get the balance of
    ``ape_jax.make_train``, multiply β by the observer's mean length over the experts'.

    The update is that of the penalised form (Eq. 3): ``min_return`` has no effect, and multipliers
    and the classifier stay as they are.

    Shapes and types are checked. Values are not, because that would wait for the device: an action
    or an expert that does not exist, or a return that is not finite, goes unnoticed.

    The first state comes from ``ape_jax.create_state``. The experts' samples [N] say which expert
    acted; in the observer's samples [N'] ``expert`` stays None.

    Returns:
      The next state, and the losses at the given one.

    Raises:
      SettingError: the shapes of the samples do not fit each other, or do not fit the networks.

    Examples:
      >>> import jax
      >>> from ape_jax import PGConfig, PGHypers, Samples
      >>> from ape_jax import create_state, make_task, update_from_samples
      >>> networks, hypers = make_task(PGConfig()).networks, PGHypers()
      >>> state = create_state(jax.random.key(0), networks, hypers)
      >>> experts = Samples(observation=[7, 8], action=[0, 1], returns=[-3.0, -2.0], expert=[0, 1])
      >>> observer = Samples(observation=[7, 8], action=[2, 3], returns=[-5.0, -4.0])
      >>> state, losses = update_from_samples(state, experts, observer, hypers)
      >>> losses.expert_policy.shape
      ()
    """
    expert_samples = _checked("expert_samples", expert_samples, state.networks, True)
    observer_samples = _checked("observer_samples", observer_samples, state.networks, False)
    return _update(state, expert_samples, observer_samples, hypers)


@jax.jit
def _update(state, expert_samples, observer_samples, hypers):
    (_, (expert, observer)), grads = jax.value_and_grad(_loss, has_aux=True)(
        state.params, state.networks, expert_samples, observer_samples, hypers
    )
    losses = SampleLosses(expert.policy, expert.value, observer.policy, observer.value)
    return apply_gradients(state, grads, hypers), losses


def _loss(params: EnsembleParams, networks: Networks, expert_samples, observer_samples, hypers):
    log_weights = mixture.uniform_log_weights(networks.num_experts)

    def expert(sample):
        log_probs = networks.expert_log_probs(params.heads, sample.observation)[sample.expert]
        values = jax.vmap(networks.value, (0, None))(params.expert_critics, sample.observation)
        return _one_step(log_probs, values[sample.expert][None], sample)

    def observer(sample):
        log_probs = networks.expert_log_probs(params.heads, sample.observation)
        log_probs = mixture.observer_log_probs(log_probs, log_weights, hypers.temperature)
        return _one_step(log_probs, networks.observer_values(params, sample.observation), sample)

    expert_losses = jax.vmap(objective.expert_loss)(jax.vmap(expert)(expert_samples))
    observer_losses = jax.vmap(objective.observer_loss, in_axes=(0, None))(
        jax.vmap(observer)(observer_samples), hypers.beta
    )
    expert_loss, observer_loss = jax.tree.map(jnp.mean, (expert_losses, observer_losses))
    return total_loss(expert_loss, observer_loss, hypers), (expert_loss, observer_loss)


def _one_step(log_probs, values, sample: Samples) -> objective.LossInputs:
    one = jnp.ones(1)
    return objective.LossInputs(
        log_probs=log_probs[sample.action][None],
        values=values[None],
        entropies=Categorical(log_probs).entropy()[None],
        returns=sample.returns[None],
        variances=0.0 * one if sample.variances is None else sample.variances[None],
        weights=one if sample.weights is None else sample.weights[None],
    )


def _checked(name: str, samples: Samples, networks: Networks, needs_expert: bool) -> Samples:
    """Samples as arrays of JAX; those that are stay as they are, which is faster."""

    def as_array(x):
        return x if x is None or isinstance(x, jax.Array) else jnp.asarray(x)

    samples = Samples(*map(as_array, samples))
    if samples.action.ndim != 1 or not samples.action.size:
        raise SettingError(
            f"{name}.action must hold one action per sample, and at least one; "
            f"got shape {samples.action.shape}"
        )
    expected = (len(samples.action), *networks.observation_shape)
    if samples.observation.shape != expected:
        raise SettingError(
            f"{name}.observation must have shape {expected}, one observation per action; "
            f"got {samples.observation.shape}"
        )
    if needs_expert and samples.expert is None:
        raise SettingError(f"{name}.expert must hold the index of the expert that acted; got None")
    if not needs_expert and samples.expert is not None:
        raise SettingError(f"{name}.expert must be None, because the mixture of all experts acted")
    for field, value in samples._asdict().items():
        if field == "observation" or value is None:
            continue
        if value.shape != expected[:1]:
            raise SettingError(f"{name}.{field} must have shape {expected[:1]}; got {value.shape}")
        if field in ("action", "expert") and not jnp.issubdtype(value.dtype, jnp.integer):
            raise SettingError(f"{name}.{field} must be integers; got {value.dtype}")
    return samples
