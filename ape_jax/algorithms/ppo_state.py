"""The state of PPO-APE: parameters, environments, and running statistics of returns and inputs."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from ape_jax.algorithms.task import Task
from ape_jax.config import PPOConfig
from ape_jax.core import statistics
from ape_jax.core.statistics import RunningStatistics
from ape_jax.envs.rollout import EnvLoopState, Rollout
from ape_jax.networks import EnsembleParams
from ape_jax.types import Transition

LENGTH_RATE = 0.1
"""Rate of the running mean of episode ends per step: it looks back over about ten rollouts."""


@struct.dataclass
class PPOState:
    """Everything that an update of PPO-APE changes.

    Returns are means over about the last B episodes of each policy, and 0 before the first ends.
    """

    params: EnsembleParams
    opt_state: optax.OptState
    key: jax.Array
    multipliers: jax.Array | None
    """λ_c [E] of the constrained form; None in the penalised form, and with gates."""
    environments: EnvLoopState
    """The experts' environments in blocks of B, then the observer's, [E * B + M, …]."""
    expert_returns: Float[Array, "*K E"]
    observer_return: Float[Array, "*K"]
    num_episodes: Int[Array, "*K E"]
    """Number of episodes of each expert that have ended."""
    observer_episodes: Int[Array, "*K"]
    """Number of episodes of the observer that have ended."""
    ends_per_step: Float[Array, "*K E"]
    """Running mean of episode ends per step of each expert: one over the length of an episode."""
    observations: RunningStatistics | None
    """Statistics of the experts' observations; None where observations are not normalised."""
    rewards: RunningStatistics | None
    """Statistics of discounted returns; None where rewards are not normalised."""
    num_updates: Int[Array, "*K"]


def num_environments(task: Task[PPOConfig]) -> int:
    """Number of environments: B for every expert, and as many again for the observer."""
    config = task.config
    return config.num_experts * config.envs_per_expert * (1 if config.observer == "none" else 2)


def experts_and_observer(task: Task[PPOConfig], tree):
    """Arrays [T, E * B + M, …] as the experts' part [T, E, B, …] and the observer's [T, M, …]."""
    num_experts = task.config.num_experts
    num_own = num_experts * task.config.envs_per_expert
    experts = jax.tree.map(
        lambda x: x[:, :num_own].reshape(x.shape[0], num_experts, -1, *x.shape[2:]), tree
    )
    return experts, jax.tree.map(lambda x: x[:, num_own:], tree)


def update_statistics(
    task: Task[PPOConfig], state: PPOState, steps: Transition, rollout: Rollout
) -> PPOState:
    """The state with the returns and the running statistics after a rollout."""
    size = task.config.envs_per_expert
    (ended, episode_return), (observer_ended, observer_return) = experts_and_observer(
        task, (steps.terminated | steps.truncated, rollout.episode_return)
    )
    rate = jnp.mean(ended, axis=(0, 2))
    old_rate = jnp.where(state.num_updates == 0, rate, state.ends_per_step)
    observations, rewards = state.observations, state.rewards
    if observations is not None:
        own, _ = experts_and_observer(task, steps.observation)
        flat = own.reshape(-1, observations.mean.shape[0]).astype(jnp.float32)
        observations = statistics.merge(observations, flat)
    if rewards is not None:
        rewards = statistics.merge(rewards, rollout.discounted_return.reshape(-1))
    return dataclasses.replace(
        state,
        expert_returns=jax.vmap(statistics.mean_of_newest, (0, 0, 1, 1, None))(
            state.expert_returns, state.num_episodes, ended, episode_return, size
        ),
        observer_return=statistics.mean_of_newest(
            state.observer_return, state.observer_episodes, observer_ended, observer_return, size
        ),
        num_episodes=state.num_episodes + jnp.sum(ended, axis=(0, 2)),
        observer_episodes=state.observer_episodes + jnp.sum(observer_ended),
        ends_per_step=old_rate + LENGTH_RATE * (rate - old_rate),
        observations=observations,
        rewards=rewards,
        num_updates=state.num_updates + 1,
    )


def known_returns(
    task: Task[PPOConfig], state: PPOState, also: Bool[Array, " E"] | bool = True
) -> Float[Array, " E"]:
    """Mean return of each expert that has ended B episodes (and is in ``also``); nan of the others.

    The first episodes to end are the shortest, and so their mean is biased.
    """
    known = (state.num_episodes >= task.config.envs_per_expert) & also
    return jnp.where(known, state.expert_returns, jnp.nan)
