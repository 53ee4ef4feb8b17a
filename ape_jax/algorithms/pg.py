"""PG-APE: the policy gradient of both terms over whole episodes (paper, Eq. 5)."""

import dataclasses
from typing import NamedTuple, no_type_check

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Key

from ape_jax.algorithms.common import (
    Metrics,
    expert_log_weights,
    init_multipliers,
    part_labels,
    update_multipliers,
)
from ape_jax.algorithms.pg_loss import Episodes, classifier_loss, loss
from ape_jax.algorithms.task import Task
from ape_jax.config import PGHypers, TrainConfig
from ape_jax.core import visits
from ape_jax.core.visits import Visits
from ape_jax.envs import rollout, tables
from ape_jax.networks import (
    EnsembleParams,
    HeadPolicy,
    Networks,
    observer_policy,
    tabulate_ensemble,
)
from ape_jax.types import LogWeightsFn, PRNGKey, SettingError, Transition


@no_type_check  # JAX also fills it with shapes, axes, and arrays with more axes.
@struct.dataclass
class PGState:
    """Everything that an update of PG-APE changes."""

    params: EnsembleParams
    opt_state: optax.OptState
    key: PRNGKey
    multipliers: Float[Array, " E"] | None
    """λ_c of the constrained form; None in the penalised form."""
    networks: Networks = struct.field(pytree_node=False)


def init(key: PRNGKey, task: Task, hypers: PGHypers) -> PGState:
    """The state before the first update."""
    return create_state(key, task.networks, hypers)


def create_state(key: PRNGKey, networks: Networks, hypers: PGHypers) -> PGState:
    """Fresh parameters and a fresh state of the optimiser."""
    key_params, key_state = jax.random.split(key)
    params = networks.init(key_params)
    return PGState(
        params=params,
        opt_state=optimizer(hypers).init(params),
        key=key_state,
        multipliers=init_multipliers(networks.num_experts, hypers),
        networks=networks,
    )


def update(
    task: Task, state: PGState, hypers: PGHypers, axis_name: str | None = None
) -> tuple[PGState, Metrics]:
    """One update of PG-APE: episodes, loss, gradient, optimiser step, and the dual step.

    The environments may be spread over a mapped axis of ``jax.shard_map`` or ``vmap``, whose size
    must divide ``envs_per_expert``. Each place then runs an equal share of every expert's
    environments, and the gradients are averaged over all places.
    """
    key, key_experts, key_observer = jax.random.split(state.key, 3)
    networks, params = task.networks, state.params
    log_weights = expert_log_weights(task, params)
    batch = collect_batch(task, params, log_weights, hypers, (key_experts, key_observer), axis_name)
    grads, losses = jax.grad(loss, has_aux=True)(
        params, networks, log_weights, batch.experts, batch.observer, hypers, state.multipliers
    )
    cross_entropy = None
    if params.classifier is not None:
        cross_entropy, classifier_grads = jax.value_and_grad(classifier_loss)(
            params.classifier, networks, batch.experts
        )
        grads = grads._replace(classifier=classifier_grads)
    measured = batch[2:]
    if axis_name is not None:
        grads, losses, cross_entropy, measured = jax.lax.pmean(
            (grads, losses, cross_entropy, measured), axis_name
        )
    returns, observer_return, length, observer_length = measured
    num_episodes = task.config.num_experts * task.config.envs_per_expert
    expert_loss, observer_loss = losses
    metrics = Metrics(
        pe_return=jnp.mean(returns),
        expert_returns=returns,
        observer_return=observer_return,
        policy_loss=expert_loss.policy + observer_loss.policy,
        value_loss=expert_loss.value + observer_loss.value,
        entropy=expert_loss.entropy / length,
        grad_norm=optax.tree.norm(grads.heads),
        live_steps=num_episodes * (length + observer_length),
        classifier_loss=None if cross_entropy is None else cross_entropy / length,
        multipliers=state.multipliers,
    )
    state = apply_gradients(state, grads, hypers, task.config.num_updates)
    multipliers = update_multipliers(state.multipliers, returns, hypers)
    return dataclasses.replace(state, key=key, multipliers=multipliers), metrics


class Batch(NamedTuple):
    """The episodes that an update learns from, with returns and lengths of the policies."""

    experts: Episodes
    observer: Episodes
    returns: Float[Array, " E"]
    """Mean undiscounted return of each expert."""
    observer_return: Float[Array, ""]
    length: Float[Array, ""]
    """Mean length of the experts' episodes, in steps."""
    observer_length: Float[Array, ""]


def collect_batch(
    task: Task,
    params: EnsembleParams,
    log_weights: LogWeightsFn,
    hypers: PGHypers,
    keys: tuple[PRNGKey, PRNGKey],
    axis_name: str | None = None,
) -> Batch:
    """The episodes of ``collect``, as visits where states are finite.

    Where the world has tables, no step is recorded.
    """
    networks, num_states = task.networks, task.networks.num_states
    if num_states is not None and task.world.moves is not None and task.observer_reward is None:
        own, others = tabulate_ensemble(networks, params.heads, log_weights, hypers.temperature)
        policies = jnp.exp(jnp.append(own, others[None], axis=0))
        expert_keys, observer_keys = (episode_keys(key, task.config, axis_name) for key in keys)
        return _batch_of_visits(
            *tables.ensemble_visits(expert_keys, observer_keys, policies, task.world, hypers.gamma)
        )
    experts, observer = collect(task, params, log_weights, hypers, keys, axis_name)
    if num_states is not None:
        sizes = (num_states, networks.num_actions)
        return _batch_of_visits(
            visits.of_episodes(experts, hypers.gamma, *sizes),
            visits.of_one_policy(observer, hypers.gamma, *sizes),
        )
    return Batch(
        experts,
        observer,
        returns=jnp.mean(jnp.sum(experts.reward, axis=0), axis=-1),
        observer_return=jnp.mean(jnp.sum(observer.reward, axis=0)),
        length=jnp.mean(jnp.sum(experts.mask, axis=0, dtype=jnp.float32)),
        observer_length=jnp.mean(jnp.sum(observer.mask, axis=0, dtype=jnp.float32)),
    )


def _batch_of_visits(experts: Visits, observer: Visits) -> Batch:
    return Batch(
        experts,
        observer,
        returns=experts.undiscounted,
        observer_return=observer.undiscounted,
        length=jnp.mean(experts.lengths()),
        observer_length=observer.lengths(),
    )


def collect(
    task: Task,
    params: EnsembleParams,
    log_weights: LogWeightsFn,
    hypers: PGHypers,
    keys: tuple[PRNGKey, PRNGKey],
    axis_name: str | None = None,
) -> tuple[Transition, Transition]:
    """Fresh episodes of every expert [T, E, B] and of the observer [T, E * B].

    The observer's episodes hold the reward r̃ of its term. B is this place's share of the
    environments; an episode has the same random numbers wherever it runs.
    """
    expert_keys, observer_keys = (episode_keys(key, task.config, axis_name) for key in keys)
    experts, observer = rollout.ensemble_episodes(
        expert_keys,
        observer_keys.reshape(-1),
        HeadPolicy(params.heads, task.networks),
        observer_policy(task.networks, params.heads, log_weights, hypers.temperature),
        task.world,
    )
    if task.observer_reward is not None:
        rewards = jax.vmap(jax.vmap(task.observer_reward))(observer)
        observer = observer._replace(reward=jnp.where(observer.mask, rewards, 0.0))
    return experts, observer


def episode_keys(key: PRNGKey, config: TrainConfig, axis_name: str | None) -> Key[Array, "E B"]:
    """Keys of this place's episodes, each made from the number of the episode among all places."""
    places = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    place = 0 if axis_name is None else jax.lax.axis_index(axis_name)
    if config.envs_per_expert % places:
        raise SettingError(
            f"envs_per_expert must be divisible by {places}, the size of axis {axis_name!r}; "
            f"got {config.envs_per_expert}"
        )
    block = config.envs_per_expert // places
    numbers = jnp.arange(config.num_experts)[:, None] * config.envs_per_expert
    numbers = numbers + place * block + jnp.arange(block)[None]
    return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (None, 0))(key, numbers)


def optimizer(hypers: PGHypers, num_updates: int | None = None) -> optax.GradientTransformation:
    """Adam with a rate for heads, critics and classifier; the gradient of the heads is clipped.

    It is rebuilt from the traced ``hypers`` at every use; only its state is stored. The rates fall
    linearly over ``num_updates`` updates; None keeps them constant.
    """

    def adam(rate):
        fall = 0.0 if num_updates is None else (1.0 - hypers.lr_end_fraction) * rate
        last_count = max((num_updates or 0) - 1, 1)
        return optax.adam(lambda count: rate - fall * count / last_count)

    clip = optax.clip_by_global_norm(hypers.max_grad_norm)
    return optax.partition(
        {
            "heads": optax.chain(clip, adam(hypers.learning_rate)),
            "critics": adam(hypers.critic_learning_rate),
            "classifier": adam(hypers.classifier_learning_rate),
        },
        lambda params: part_labels(params, ("heads", "critics", "critics", "classifier")),
    )


def apply_gradients(
    state: PGState, grads: EnsembleParams, hypers: PGHypers, num_updates: int | None = None
) -> PGState:
    """One step of the optimiser."""
    changes, opt_state = optimizer(hypers, num_updates).update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, changes)
    return dataclasses.replace(state, params=params, opt_state=opt_state)


def steps_per_update(task: Task) -> int:
    """Environment steps in one update: episodes of experts and observer, padded to the limit."""
    return 2 * task.config.num_experts * task.config.envs_per_expert * task.world.horizon
