"""PPO-APE: clipped surrogates for both terms, over segments of endless streams of episodes.

Experts ascend their own advantage, and every expert the negative of the observer's, whose policy is
made of all of them. Advantages are in units of their standard deviation, for each expert and for
the observer apart, so that β weighs terms of one size in every environment.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from ape_jax.algorithms.common import (
    Metrics,
    PPOState,
    Task,
    TrainState,
    constrain,
    expert_log_weights,
)
from ape_jax.algorithms.ppo_loss import Batch, Parts, Steps, Weights, calibration_of, minibatch_loss
from ape_jax.config import Hypers
from ape_jax.core import objective, random, returns
from ape_jax.core import statistics as moments
from ape_jax.envs import rollout
from ape_jax.envs.rollout import EnvLoopState, Rollout
from ape_jax.networks import EnsembleParams, HeadPolicy, observer_policy, with_statistics
from ape_jax.types import LogWeightsFn, Params, Policy, PRNGKey, Transition

LENGTH_RATE = 0.1
"""Of the running mean of an expert's ends a step: it looks back over about ten segments."""


def begin(task: Task, hypers: Hypers, state: TrainState) -> TrainState:
    """A fresh state with environments to go on from, and its own optimiser's."""
    config, networks = task.config, task.networks
    key, key_streams = jax.random.split(state.key)
    keys = jax.random.split(key_streams, num_streams(task))
    streams = rollout.start_streams(keys, task.world)
    size = streams.observation[0].size
    carried = PPOState(
        streams=streams,
        expert_returns=jnp.zeros(networks.num_experts),
        observer_return=jnp.float32(0.0),
        num_episodes=jnp.zeros(networks.num_experts, jnp.int32),
        observer_episodes=jnp.int32(0),
        ends_per_step=jnp.zeros(networks.num_experts),
        observations=moments.standard((size,)) if config.normalize_observations else None,
        rewards=moments.standard(()) if config.normalize_rewards else None,
        num_updates=jnp.int32(0),
    )
    return dataclasses.replace(
        state,
        key=key,
        ppo=carried,
        opt_state=optimizer(task, hypers).init(state.params),
        multipliers=None if config.constraint == "gate" else state.multipliers,
    )


def num_streams(task: Task) -> int:
    """Environments in all: B of every expert, and as many again for the observer."""
    config = task.config
    return config.num_experts * config.envs_per_expert * (1 if config.observer == "none" else 2)


def optimizer(task: Task, hypers: Hypers) -> optax.GradientTransformation:
    """Adam, clipped for every expert apart, so that none takes another's share of the step.

    Rates fall over all steps of the optimiser; the classifier's stays.
    """
    config = task.config
    steps = config.num_updates * config.num_epochs * config.num_minibatches
    clip = optax.clip_by_global_norm(hypers.max_grad_norm)
    each = optax.stateless(
        lambda updates, _: jax.vmap(lambda x: clip.update(x, optax.EmptyState())[0])(updates)
    )

    def adam(rate, *clips):
        rates = optax.linear_schedule(rate, hypers.lr_end_fraction * rate, max(steps - 1, 1))
        return optax.chain(*clips, optax.adam(rates, eps=1e-5))

    return optax.partition(
        {
            "heads": adam(hypers.learning_rate, each),
            "expert critics": adam(hypers.critic_learning_rate, each),
            "observer critic": adam(hypers.critic_learning_rate, clip),
            "classifier": optax.adam(hypers.classifier_learning_rate, eps=1e-5),
        },
        lambda params: EnsembleParams(
            heads="heads",
            expert_critics="expert critics",
            observer_critic=jax.tree.map(lambda _: "observer critic", params.observer_critic),
            classifier=jax.tree.map(lambda _: "classifier", params.classifier),
        ),
    )


def head_norm(gradients: Params) -> Float[Array, ""]:
    """Norm of the gradient of heads [E, …]."""
    return jnp.maximum(optax.tree.norm(gradients), 1e-12)


def update(task: Task, state: TrainState, hypers: Hypers) -> tuple[TrainState, Metrics]:
    """One update: a segment of every stream, then epochs of minibatches over it.

    Args:
      task: what is trained.
      state: before the update, from ``begin`` or another update.
      hypers: numbers of the update.
    """
    assert state.ppo is not None
    carried, config = state.ppo, task.config
    key, key_collect, key_shuffle = jax.random.split(state.key, 3)
    log_weights = expert_log_weights(task, state.params)
    temperature = temperature_at(carried.num_updates, config.num_updates, hypers)

    observer = observer_policy(task.networks, state.params.heads, log_weights, temperature)
    streams, steps, seen = collect(
        key_collect, task, state.params, carried.streams, observer, hypers
    )
    before, carried = carried, go_on(task, carried, streams, steps, seen)
    batch = prepare(task, state.params, steps, seen, carried, log_weights, hypers)
    weights = weigh(task, carried, state.multipliers, hypers)
    calibration_error = None
    if state.params.classifier is not None:
        calibration_error = calibration_of(
            task.networks, state.params.classifier, batch.experts, weights.lengths
        )

    def loss(params, part):
        return minibatch_loss(params, task.networks, part, hypers, temperature, weights)

    params, opt_state, parts, grad_norm = descend(key_shuffle, task, state, batch, loss, hypers)
    if carried.observations is not None:
        params = with_statistics(params, carried.observations.mean, carried.observations.scale())
    ended = carried.num_episodes > 0
    metrics = Metrics(
        pe_return=jnp.where(jnp.all(ended), jnp.mean(carried.expert_returns), jnp.nan),
        expert_returns=jnp.where(ended, carried.expert_returns, jnp.nan),
        observer_return=jnp.where(carried.observer_episodes > 0, carried.observer_return, jnp.nan),
        policy_loss=parts.policy,
        value_loss=parts.value,
        entropy=parts.entropy,
        grad_norm=grad_norm,
        classifier_loss=parts.classifier,
        multipliers=state.multipliers,
        calibration_error=calibration_error,
    )
    state = dataclasses.replace(state, params=params, opt_state=opt_state, key=key, ppo=carried)
    # A return is news once, however many segments an episode lasts.
    news = known_returns(task, carried, carried.num_episodes > before.num_episodes)
    return constrain(state, news, hypers), metrics


def weigh(
    task: Task, carried: PPOState, multipliers: Float[Array, " E"] | None, hypers: Hypers
) -> Weights:
    """How much the terms and the experts count in this update."""
    num_experts = task.config.num_experts
    experts, observer = jnp.ones(num_experts), jnp.float32(hypers.beta)
    if multipliers is not None:
        experts, observer = objective.dual_weights(multipliers)
    gates = jnp.ones(num_experts)
    if task.config.constraint == "gate" and hypers.min_return is not None:
        gates = objective.gate(known_returns(task, carried), hypers.min_return, hypers.gate_width)
    lengths = 1.0 / jnp.clip(carried.ends_per_step, 1.0 / task.world.horizon, 1.0)
    return Weights(experts, observer, gates, lengths / jnp.sum(lengths))


def known_returns(
    task: Task, carried: PPOState, also: Bool[Array, " E"] | bool = True
) -> Float[Array, " E"]:
    """Returns of experts that have ended B episodes; nan of the others.

    The first to end are the shortest, and no fair sample.
    """
    known = (carried.num_episodes >= task.config.envs_per_expert) & also
    return jnp.where(known, carried.expert_returns, jnp.nan)


def temperature_at(num_done, num_updates: int, hypers: Hypers) -> Float[Array, ""] | float:
    """Of the observer at an update: from the first temperature linearly to the last."""
    if hypers.init_temperature is None:
        return hypers.temperature
    done = num_done / max(num_updates - 1, 1)
    return hypers.init_temperature + done * (hypers.temperature - hypers.init_temperature)


def collect(
    key: PRNGKey,
    task: Task,
    params: EnsembleParams,
    streams: EnvLoopState,
    observer: Policy,
    hypers: Hypers,
) -> tuple[EnvLoopState, Transition, Rollout]:
    """A rollout [T, E * B + M] of every stream: experts in their own blocks, then the observer."""
    config, num_all = task.config, num_streams(task)
    num_own = config.num_experts * config.envs_per_expert
    actors = rollout.in_blocks(
        HeadPolicy(params.heads, task.networks),
        config.num_experts,
        config.envs_per_expert,
        observer if num_all > num_own else None,
        rollout.draw_with_log_prob,
    )
    keys = jax.random.split(key, num_all)
    return rollout.collect_rollout(
        keys, streams, actors, task.world, config.rollout_length, hypers.gamma
    )


def go_on(
    task: Task, carried: PPOState, streams: EnvLoopState, steps: Transition, seen: Rollout
) -> PPOState:
    """Returns and running statistics after a segment."""
    config = task.config
    ended = steps.terminated | steps.truncated
    num_own = config.num_experts * config.envs_per_expert

    own = jax.tree.map(
        lambda x: x[:, :num_own].reshape(x.shape[0], config.num_experts, -1),
        (ended, seen.episode_return),
    )
    ends = jnp.sum(own[0], axis=(0, 2))
    now = jnp.mean(own[0], axis=(0, 2))
    rate = jnp.where(carried.num_updates == 0, now, carried.ends_per_step)
    observations, rewards = carried.observations, carried.rewards
    if observations is not None:
        flat = steps.observation[:, :num_own].reshape(-1, observations.mean.shape[0])
        observations = moments.merge(observations, flat.astype(jnp.float32))
    if rewards is not None:
        rewards = moments.merge(rewards, seen.discounted_return.reshape(-1))
    return PPOState(
        streams=streams,
        expert_returns=jax.vmap(moments.mean_of_newest, (0, 0, 1, 1, None))(
            *(carried.expert_returns, carried.num_episodes, *own, config.envs_per_expert)
        ),
        observer_return=moments.mean_of_newest(
            carried.observer_return,
            carried.observer_episodes,
            ended[:, num_own:],
            seen.episode_return[:, num_own:],
            config.envs_per_expert,
        ),
        num_episodes=carried.num_episodes + ends,
        observer_episodes=carried.observer_episodes + jnp.sum(ended[:, num_own:]),
        ends_per_step=rate + LENGTH_RATE * (now - rate),
        observations=observations,
        rewards=rewards,
        num_updates=carried.num_updates + 1,
    )


def prepare(
    task: Task,
    params: EnsembleParams,
    steps: Transition,
    seen: Rollout,
    carried: PPOState,
    log_weights: LogWeightsFn,
    hypers: Hypers,
) -> Batch:
    """Values, advantages and targets of a segment, flat over time and environments."""
    networks, num_experts = task.networks, task.config.num_experts
    num_own = num_experts * task.config.envs_per_expert
    scale = 1.0 if carried.rewards is None else carried.rewards.scale()

    def of_policy(critic, steps, log_prob):
        value = jax.vmap(jax.vmap(networks.value, (None, 0)), (None, 0))
        values = value(critic, steps.observation)
        next_values = value(critic, steps.next_observation)
        advantages = jax.vmap(
            returns.generalized_advantages, in_axes=(1, 1, 1, 1, 1, None, None), out_axes=1
        )(
            *(steps.reward * scale, values, next_values, steps.terminated, steps.truncated),
            *(hypers.gamma, hypers.gae_lambda),
        )
        standard = (advantages - jnp.mean(advantages)) / (jnp.std(advantages) + 1e-8)
        of_steps = Steps(
            *(steps.observation, steps.action, log_prob),
            *(values, standard, advantages + values),
        )
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), of_steps)

    own = jax.tree.map(
        lambda x: x[:, :num_own].reshape(x.shape[0], num_experts, -1, *x.shape[2:]),
        (steps, seen.log_prob),
    )
    experts = jax.vmap(of_policy, (0, 1, 1))(params.expert_critics, *own)
    if task.config.observer == "none":
        return Batch(experts, None)
    others = jax.tree.map(lambda x: x[:, num_own:], (steps, seen.log_prob))
    observer = of_policy(params.observer_critic, *others)
    weights = jax.vmap(log_weights)(observer.observation)
    return Batch(experts, observer._replace(log_weights=weights))


def descend(
    key: PRNGKey, task: Task, state: TrainState, batch: Batch, loss: Callable, hypers: Hypers
) -> tuple[EnsembleParams, optax.OptState, Parts, Float[Array, ""]]:
    """Epochs of minibatches in one scan; loss and norm of the gradient are means over all."""
    config = task.config
    step = optimizer(task, hypers)

    def split(key: PRNGKey, steps: Steps, axis: int) -> Steps:
        """Shuffled minibatches [P, …] of steps along an axis; every expert in the same order."""
        order = random.permutation(key, steps.log_prob.shape[axis])
        order = order.reshape(config.num_minibatches, -1)
        return jax.tree.map(lambda x: jnp.moveaxis(jnp.take(x, order, axis=axis), axis, 0), steps)

    def minibatch(carry, part):
        params, opt_state = carry
        grads, parts = jax.grad(loss, has_aux=True)(params, part)
        changes, opt_state = step.update(grads, opt_state, params)
        params = optax.apply_updates(params, changes)
        return (params, opt_state), (parts, head_norm(grads.heads))

    def epoch(carry, key):
        key_experts, key_observer = jax.random.split(key)
        observer = batch.observer
        if observer is not None:
            observer = split(key_observer, observer, 0)
        parts = Batch(split(key_experts, batch.experts, 1), observer)
        return jax.lax.scan(minibatch, carry, parts)

    carry = (state.params, state.opt_state)
    (params, opt_state), seen = jax.lax.scan(epoch, carry, jax.random.split(key, config.num_epochs))
    return params, opt_state, *jax.tree.map(jnp.mean, seen)
