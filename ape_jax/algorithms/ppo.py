"""PPO-APE: clipped surrogates for both terms, over rollouts of episodes that follow each other.

Experts ascend their own advantage, and every expert the negative of the observer's advantage,
because the observer's policy is made of all of them. Advantages are divided by their standard
deviation, for each expert and for the observer apart, so that β weights terms of one size in every
environment.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Shaped

from ape_jax.algorithms import common, ppo_epochs, ppo_loss, ppo_state
from ape_jax.algorithms.common import Metrics
from ape_jax.algorithms.ppo_loss import Batch, LossParts, LossWeights, Steps
from ape_jax.algorithms.ppo_state import PPOState
from ape_jax.algorithms.task import Task
from ape_jax.config import PPOConfig, PPOHypers
from ape_jax.core import objective, platform, random
from ape_jax.core.returns import generalized_advantages
from ape_jax.core.statistics import init_statistics
from ape_jax.envs.rollout import (
    EnvLoopState,
    Rollout,
    collect_rollout,
    draw_with_log_prob,
    in_blocks,
    start_streams,
)
from ape_jax.networks import HeadPolicy, observer_policy, with_statistics
from ape_jax.types import LogWeightsFn, Policy, PRNGKey, Transition


def init(key: PRNGKey, task: Task[PPOConfig], hypers: PPOHypers) -> PPOState:
    """The state before the first update, with environments at the start of an episode."""
    config, networks = task.config, task.networks
    key_params, key = jax.random.split(key)
    key, key_environments = jax.random.split(key)
    keys = jax.random.split(key_environments, ppo_state.num_environments(task))
    environments = start_streams(keys, task.world)
    size = environments.observation[0].size
    params = networks.init(key_params)
    gated = config.constraint == "gate"
    return PPOState(
        params=params,
        opt_state=ppo_epochs.optimizer(config, hypers).init(
            ppo_epochs.as_rows(params, config.num_experts)
        ),
        key=key,
        multipliers=None if gated else common.init_multipliers(networks.num_experts, hypers),
        environments=environments,
        expert_returns=jnp.zeros(networks.num_experts),
        observer_return=jnp.float32(0.0),
        num_episodes=jnp.zeros(networks.num_experts, jnp.int32),
        observer_episodes=jnp.int32(0),
        ends_per_step=jnp.zeros(networks.num_experts),
        observations=init_statistics((size,)) if config.normalize_observations else None,
        rewards=init_statistics(()) if config.normalize_rewards else None,
        num_updates=jnp.int32(0),
    )


def update(
    task: Task[PPOConfig], state: PPOState, hypers: PPOHypers, axis_name: None = None
) -> tuple[PPOState, Metrics]:
    """One update: a rollout of every environment, then epochs of minibatches over it.

    ``axis_name`` is None, because the environments of a seed stay on one device.
    """
    assert axis_name is None, "PPO-APE spreads seeds over devices, not environments"
    log_weights = common.expert_log_weights(task, state.params)
    state, steps, rollout = act(task, state, log_weights, hypers)
    return learn(task, state, steps, rollout, log_weights, hypers)


def act(
    task: Task[PPOConfig], state: PPOState, log_weights: LogWeightsFn, hypers: PPOHypers
) -> tuple[PPOState, Transition, Rollout]:
    """The first half of an update: a rollout of every environment, [T, E * B + M].

    The state that is returned has the environments after the rollout, and is otherwise as it was.
    """
    _, key_collect, _ = _keys(state)
    temperature = temperature_at(state.num_updates, task.config.num_updates, hypers)
    observer = observer_policy(task.networks, state.params.heads, log_weights, temperature)
    environments, steps, rollout = collect(key_collect, task, state, observer, hypers)
    return dataclasses.replace(state, environments=environments), steps, rollout


def learn(
    task: Task[PPOConfig],
    state: PPOState,
    steps: Transition,
    rollout: Rollout,
    log_weights: LogWeightsFn,
    hypers: PPOHypers,
) -> tuple[PPOState, Metrics]:
    """The second half of an update: epochs of minibatches over a rollout of ``act``.

    The rewards of the steps are those that are learned from. Where rewards are normalised, it is
    by the discounted returns of the rollout.
    """
    config = task.config
    key, _, key_shuffle = _keys(state)
    temperature = temperature_at(state.num_updates, config.num_updates, hypers)
    num_episodes_before = state.num_episodes
    state = ppo_state.update_statistics(task, state, steps, rollout)
    batch = make_batch(task, state, steps, rollout, log_weights, hypers)
    weights = loss_weights(task, state, hypers)
    error, classifier = None, state.params.classifier
    if classifier is not None:
        seen = batch.experts.observation
        seen = seen.reshape(-1, config.envs_per_expert, *seen.shape[2:])
        log_weights_of = functools.partial(task.networks.expert_log_weights, classifier)
        error = ppo_loss.calibration_error(in_chunks(log_weights_of, seen), weights.lengths)

    def loss(params, minibatch):
        return ppo_loss.minibatch_loss(
            params, task.networks, minibatch, hypers, temperature, weights
        )

    params, opt_state, parts, grad_norm = ppo_epochs.run_epochs(
        key_shuffle, config, state.params, state.opt_state, batch, loss, hypers
    )
    if state.observations is not None:
        params = with_statistics(params, state.observations.mean, state.observations.scale())
    metrics = summarize(task, state, parts, grad_norm, error)
    # The mean return of an expert makes a dual step only after an update in which episodes ended.
    new_returns = ppo_state.known_returns(task, state, state.num_episodes > num_episodes_before)
    multipliers = common.update_multipliers(state.multipliers, new_returns, hypers)
    state = dataclasses.replace(
        state,
        params=params,
        opt_state=opt_state,
        key=key,
        multipliers=multipliers,
    )
    return state, metrics


def _keys(state: PPOState) -> Key[Array, " 3"]:
    """Keys of the next update, of the rollout, and of the order of minibatches."""
    return random.split(state.key, 3)


def temperature_at(
    num_done: Int[Array, ""], num_updates: int, hypers: PPOHypers
) -> Float[Array, ""] | float:
    """Temperature of the observer at an update, on a line from the first to the last."""
    if hypers.init_temperature is None:
        return hypers.temperature
    done = num_done / max(num_updates - 1, 1)
    return hypers.init_temperature + done * (hypers.temperature - hypers.init_temperature)


def collect(
    key: PRNGKey, task: Task[PPOConfig], state: PPOState, observer: Policy, hypers: PPOHypers
) -> tuple[EnvLoopState, Transition, Rollout]:
    """A rollout [T, E * B + M]: the experts in their own blocks, then the observer."""
    config, num_all = task.config, ppo_state.num_environments(task)
    num_own = config.num_experts * config.envs_per_expert
    actors = in_blocks(
        HeadPolicy(state.params.heads, task.networks),
        config.num_experts,
        config.envs_per_expert,
        observer if num_all > num_own else None,
        draw_with_log_prob,
    )
    keys = random.split(key, num_all)
    return collect_rollout(
        keys, state.environments, actors, task.world, config.rollout_length, hypers.gamma
    )


def make_batch(
    task: Task[PPOConfig],
    state: PPOState,
    steps: Transition,
    rollout: Rollout,
    log_weights: LogWeightsFn,
    hypers: PPOHypers,
) -> Batch:
    """Values, advantages and targets of a rollout, flat over time and environments."""
    networks, params = task.networks, state.params
    scale = 1.0 if state.rewards is None else state.rewards.scale()
    advantages_of = jax.vmap(
        generalized_advantages, in_axes=(1, 1, 1, 1, 1, None, None), out_axes=1
    )

    def steps_of(critic, steps, log_prob):
        def value(observations):
            return networks.value(critic, observations)

        values, next_values = rollout_values(value, steps, task.world.horizon)
        advantages = advantages_of(
            steps.reward * scale,
            values,
            next_values,
            steps.terminated,
            steps.truncated,
            hypers.gamma,
            hypers.gae_lambda,
        )
        flat = Steps(
            observation=steps.observation,
            action=steps.action,
            log_prob=log_prob,
            value=values,
            advantage=(advantages - jnp.mean(advantages)) / (jnp.std(advantages) + 1e-8),
            target=advantages + values,
        )
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), flat)

    own, others = ppo_state.experts_and_observer(task, (steps, rollout.log_prob))
    experts = jax.vmap(steps_of, (0, 1, 1))(params.expert_critics, *own)
    if task.config.observer == "none":
        return Batch(experts, None)
    observer = steps_of(params.observer_critic, *others)
    weights = in_chunks(jax.vmap(log_weights), others[0].observation)
    return Batch(experts, observer._replace(log_weights=weights.reshape(-1, weights.shape[-1])))


def rollout_values(
    value: Callable, steps: Transition, horizon: int
) -> tuple[Float[Array, "T B"], Float[Array, "T B"]]:
    """Values of the observations of a rollout [T, B], and of their true successors.

    The successor of a step is the observation of the next one, unless an episode ended. After the
    end of a task its value does not count. So the critic is asked again only for the last successor
    and for those that a time limit cut off, which are at least ``horizon`` steps apart.
    """
    values = in_chunks(value, steps.observation)
    length = len(values)
    cut = steps.truncated.at[-1].set(True)
    number = jnp.cumsum(cut, axis=0)
    most = min((length - 1) // horizon + 2, length)
    # The step of the first cut, of the second …; zero where there are fewer.
    numbers = jnp.arange(1, most + 1).reshape(-1, 1, 1)
    steps_of_cuts = jnp.argmax(number[None] == numbers, axis=1)
    rows = jax.vmap(lambda x, index: x[index], 1, 1)
    at_cuts = in_chunks(value, rows(steps.next_observation, steps_of_cuts))
    following = jnp.concatenate([values[1:], values[-1:]])
    return values, jnp.where(cut, rows(at_cuts, number - 1), following)


def in_chunks(
    function: Callable, observations: Shaped[Array, "T B ..."]
) -> Float[Array, "T B ..."]:
    """A function of a batch of observations, at those of a rollout.

    On a CPU some steps at a time, so that what the function computes stays in the cache.
    """
    chunk = platform.forms().critic_chunk
    length, size = observations.shape[:2]
    if chunk is None or length * size <= chunk:
        return jax.vmap(function)(observations)
    return jax.lax.map(function, observations, batch_size=max(1, chunk // size))


def loss_weights(task: Task[PPOConfig], state: PPOState, hypers: PPOHypers) -> LossWeights:
    """The weights of the terms and of the experts in this update."""
    num_experts = task.config.num_experts
    experts, observer = jnp.ones(num_experts), jnp.float32(hypers.beta)
    if state.multipliers is not None:
        experts, observer = objective.dual_weights(state.multipliers)
    gates = jnp.ones(num_experts)
    if task.config.constraint == "gate" and hypers.min_return is not None:
        gates = objective.gate(
            ppo_state.known_returns(task, state), hypers.min_return, hypers.gate_width
        )
    lengths = 1.0 / jnp.clip(state.ends_per_step, 1.0 / task.world.horizon, 1.0)
    return LossWeights(experts, observer, gates, lengths / jnp.sum(lengths))


def summarize(
    task: Task[PPOConfig],
    state: PPOState,
    parts: LossParts,
    grad_norm: Float[Array, ""],
    calibration_error: Float[Array, ""] | None,
) -> Metrics:
    """The metrics of one update; returns are nan before the first episode has ended."""
    ended = state.num_episodes > 0
    return Metrics(
        pe_return=jnp.where(jnp.all(ended), jnp.mean(state.expert_returns), jnp.nan),
        expert_returns=jnp.where(ended, state.expert_returns, jnp.nan),
        observer_return=jnp.where(state.observer_episodes > 0, state.observer_return, jnp.nan),
        policy_loss=parts.policy,
        value_loss=parts.value,
        entropy=parts.entropy,
        grad_norm=grad_norm,
        live_steps=jnp.float32(steps_per_update(task)),
        classifier_loss=parts.classifier,
        multipliers=state.multipliers,
        calibration_error=calibration_error,
    )


def steps_per_update(task: Task[PPOConfig]) -> int:
    """Environment steps in one update, the experts' and the observer's."""
    return ppo_state.num_environments(task) * task.config.rollout_length
