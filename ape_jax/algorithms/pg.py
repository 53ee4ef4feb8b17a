"""PG-APE: one update from fresh whole episodes (paper, Eq. 5)."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, Shaped

from ape_jax.algorithms.common import (
    Metrics,
    Task,
    TrainState,
    apply_gradients,
    constrain,
    expert_log_weights,
)
from ape_jax.config import Hypers, TrainConfig
from ape_jax.core import objective, samples
from ape_jax.core.distributions import HeadDistribution
from ape_jax.core.samples import Visits
from ape_jax.envs import rollout
from ape_jax.networks import EnsembleParams, HeadPolicy, Networks, observer_policy
from ape_jax.types import LogWeightsFn, Params, PRNGKey, SettingError, Transition


class Estimates(NamedTuple):
    """What an update learns from its episodes: means over them, so that places can be averaged."""

    grads: EnsembleParams
    """Of the objective's loss, by parameter."""
    expert_loss: objective.Loss
    """Policy and value loss of the experts' term."""
    observer_loss: objective.Loss
    """Policy and value loss of the observer's term."""
    expert_returns: Float[Array, " E"]
    """Mean returns of the update's episodes."""
    observer_return: Float[Array, ""]
    """Mean return of the update's episodes."""
    expert_length: Float[Array, ""]
    """Live steps of an expert's episode."""
    cross_entropy: Float[Array, ""] | None
    """Of the classifier, summed over an episode."""


def update(
    task: Task, state: TrainState, hypers: Hypers, axis_name: str | None = None
) -> tuple[TrainState, Metrics]:
    """One update of PG-APE: collect, returns, loss, gradient, step.

    With ``hypers.min_return`` a step of the multipliers follows (paper, Eq. 2).

    Args:
      task: what is trained.
      state: before the update.
      hypers: numbers of the update.
      axis_name: a mapped axis, of ``jax.shard_map`` or ``vmap``, over which the environments are
        spread: each of its places runs an equal share of every expert's, and all average their
        gradients. Its size must divide ``envs_per_expert``.
    """
    key, key_experts, key_observer = jax.random.split(state.key, 3)
    log_weights = expert_log_weights(task, state.params)
    experts, observer = collect(
        task, state.params, log_weights, hypers, (key_experts, key_observer), axis_name
    )
    grads, (expert_loss, observer_loss) = jax.grad(loss, has_aux=True)(
        state.params, task.networks, log_weights, experts, observer, hypers, state.multipliers
    )
    cross_entropy = None
    if state.params.classifier is not None:
        cross_entropy, slope = jax.value_and_grad(classifier_loss)(
            state.params.classifier, task.networks, experts
        )
        grads = grads._replace(classifier=slope)
    estimates = Estimates(
        grads=grads,
        expert_loss=expert_loss,
        observer_loss=observer_loss,
        expert_returns=jnp.mean(jnp.sum(experts.reward, axis=0), axis=-1),
        observer_return=jnp.mean(jnp.sum(observer.reward, axis=0)),
        expert_length=jnp.mean(jnp.sum(experts.live, axis=0, dtype=jnp.float32)),
        cross_entropy=cross_entropy,
    )
    if axis_name is not None:
        estimates = jax.lax.pmean(estimates, axis_name)
    metrics = summarize(estimates, state.multipliers)
    state = dataclasses.replace(state, key=key)
    state = apply_gradients(state, estimates.grads, hypers, task.config.num_updates)
    return constrain(state, metrics.expert_returns, hypers), metrics


def collect(
    task: Task,
    params: EnsembleParams,
    log_weights: LogWeightsFn,
    hypers: Hypers,
    keys: tuple[PRNGKey, PRNGKey],
    axis_name: str | None = None,
) -> tuple[Transition, Transition]:
    """Fresh episodes of every expert [T, E, B] and of the observer [T, E * B].

    The observer's episodes hold the reward r̃ of its term. B is this place's share where
    environments are spread over a mapped axis; an episode has the same random numbers wherever it
    runs.
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
        observer = observer._replace(reward=jnp.where(observer.live, rewards, 0.0))
    return experts, observer


def episode_keys(key: PRNGKey, config: TrainConfig, axis_name: str | None) -> Key[Array, "E B"]:
    """Keys of this place's episodes, each derived from the episode's number among all."""
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


def loss(
    params: EnsembleParams,
    networks: Networks,
    log_weights: LogWeightsFn,
    experts: Transition,
    observer: Transition,
    hypers: Hypers,
    multipliers: Float[Array, " E"] | None = None,
) -> tuple[Float[Array, ""], tuple[objective.Loss, objective.Loss]]:
    """The PG-APE loss of collected episodes: mean over trajectories of both terms.

    Args:
      params: heads and critics.
      networks: what they mean.
      log_weights: the observer's log w_c, a function of the observation.
      experts: episodes [T, E, B].
      observer: episodes [T, N].
      hypers: β, γ, temperature, entropy bonus.
      multipliers: λ_c of the constrained form, which weigh the two terms in place of β; None in
        the penalised form.

    Returns:
      The scalar loss, and its parts averaged for each term.
    """
    chex.assert_axis_dimension(experts.reward, 1, networks.num_experts)

    def expert_block(head, critic, seen):
        policy = networks.tabulate(lambda o: networks.distribution(head, o))
        values = networks.tabulate(lambda o: networks.value(critic, o)[None])
        losses = jax.vmap(objective.expert_loss, in_axes=1)(evaluate(policy, values, seen))
        return jax.tree.map(jnp.mean, losses)

    expert_losses = jax.vmap(expert_block, in_axes=(0, 0, 1))(
        params.heads, params.expert_critics, visits_of(networks, experts, hypers.gamma)
    )
    beta: Float[Array, ""] | float = hypers.beta
    if multipliers is not None:
        weights, beta = objective.dual_weights(multipliers)
        expert_losses = expert_losses._replace(policy=weights * expert_losses.policy)
    acts = observer_policy(networks, params.heads, log_weights, hypers.temperature)
    policy = networks.tabulate(lambda o: acts((), o, -1)[1])
    values = networks.tabulate(lambda o: networks.observer_values(params, o))
    one_block = jax.tree.map(lambda x: x[:, None], observer)
    seen = jax.tree.map(lambda x: x[:, 0], visits_of(networks, one_block, hypers.gamma))
    observer_losses = jax.vmap(objective.observer_loss, in_axes=(1, None))(
        evaluate(policy, values, seen), beta
    )
    expert, clone = jax.tree.map(jnp.mean, (expert_losses, observer_losses))
    return total_loss(expert, clone, hypers), (expert, clone)


def total_loss(
    expert: objective.Loss, observer: objective.Loss, hypers: Hypers
) -> Float[Array, ""]:
    """The sum of both terms, each already averaged over its trajectories."""
    return (
        expert.policy
        + expert.value
        + observer.policy
        + observer.value
        - hypers.ent_coef * expert.entropy
    )


def classifier_loss(
    classifier: Params, networks: Networks, experts: Transition
) -> Float[Array, ""]:
    """Cross-entropy of q(c|s) on the states that experts visit: its minimum is the posterior.

    Summed over time, mean over trajectories, as the other losses are.

    Args:
      classifier: parameters of q.
      networks: what they mean.
      experts: episodes [T, E, B]; the expert of an episode is its label.
    """
    log_weights = networks.tabulate(
        lambda observation: networks.expert_log_weights(classifier, observation)
    )

    def block(label, seen):
        terms = jax.vmap(jax.vmap(log_weights))(seen.observation)[..., label]
        return -jnp.mean(jnp.sum(seen.weights * terms, axis=0))

    seen = visits_of(networks, experts, 1.0)
    return jnp.mean(jax.vmap(block, in_axes=(0, 1))(jnp.arange(networks.num_experts), seen))


def visits_of(networks: Networks, episodes: Transition, gamma: Float[Array, ""] | float) -> Visits:
    """What a loss needs of episodes [T, G, N]: all steps, or all pairs where states are finite."""
    steps = samples.every_step(episodes, gamma)
    if networks.num_states is None:
        return steps
    return samples.every_pair(steps, networks.num_states, networks.num_actions)


def evaluate(
    policy: Callable[[Shaped[Array, "..."]], HeadDistribution],
    values: Callable[[Shaped[Array, "..."]], Float[Array, " V"]],
    seen: Visits,
) -> objective.Evaluated:
    """What the objective needs of what was seen [T, N], under one policy and its critics."""

    def at_visit(observation, action):
        distribution = policy(observation)
        return distribution.log_prob(action), distribution.entropy(), values(observation)

    log_probs, entropies, columns = jax.vmap(jax.vmap(at_visit))(seen.observation, seen.action)
    return objective.Evaluated(
        log_probs, columns, entropies, seen.returns, seen.variances, seen.weights
    )


def summarize(estimates: Estimates, multipliers: Float[Array, " E"] | None) -> Metrics:
    """Metrics of one update."""
    expert, observer = estimates.expert_loss, estimates.observer_loss
    cross_entropy = estimates.cross_entropy
    return Metrics(
        pe_return=jnp.mean(estimates.expert_returns),
        expert_returns=estimates.expert_returns,
        observer_return=estimates.observer_return,
        policy_loss=expert.policy + observer.policy,
        value_loss=expert.value + observer.value,
        entropy=expert.entropy / estimates.expert_length,
        grad_norm=optax.tree.norm(estimates.grads.heads),
        classifier_loss=None if cross_entropy is None else cross_entropy / estimates.expert_length,
        multipliers=multipliers,
    )
