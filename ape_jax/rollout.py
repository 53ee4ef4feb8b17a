"""The one place that steps environments."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from gymnax.environments.environment import Environment, EnvParams
from jaxtyping import Array, Float, Int, Key, Shaped

from ape_jax.core import categorical
from ape_jax.networks import Networks
from ape_jax.types import (
    CumulativeProbsFn,
    LogProbsFn,
    MemoryPolicy,
    Params,
    PRNGKey,
    Transition,
)


def episode(
    key: PRNGKey,
    cumulative_probs: CumulativeProbsFn,
    env: Environment,
    env_params: EnvParams,
    num_steps: int,
) -> Transition:
    """One episode from a fresh start, padded to ``num_steps`` with steps that are not live.

    Args:
      key: drives start, actions and transitions; each draws from its own stream.
      cumulative_probs: the policy: an observation to P(action ≤ a).
      env: any gymnax environment.
      env_params: its parameters.
      num_steps: T; an episode that is longer is cut there without being marked truncated.

    Returns:
      Transitions [T]. After the end the last state is repeated with reward zero.
    """
    return _episode(
        key,
        lambda memory, observation, _: (memory, cumulative_probs(observation)),
        None,
        env,
        env_params,
        num_steps,
    )


def episode_with_memory(
    key: PRNGKey,
    policy: MemoryPolicy,
    env: Environment,
    env_params: EnvParams,
    num_steps: int,
) -> Transition:
    """As :func:`episode`, for a policy that remembers what it saw and did in the episode."""

    def act(memory, observation, last_action):
        memory, log_probs = policy(memory, observation, last_action)
        return memory, categorical.cumulative_probs(log_probs)

    return _episode(key, act, policy.start(), env, env_params, num_steps)


def _episode(key, act, memory, env, env_params, num_steps) -> Transition:
    key_start, key_actions, key_moves = jax.random.split(key, 3)
    start = env.reset_env(key_start, env_params)
    uniforms = jax.random.uniform(key_actions, (num_steps,))
    move_keys = jax.random.split(key_moves, num_steps)

    def step(carry, draws):
        (observation, state, live), memory, last_action = carry
        uniform, key_move = draws
        memory, cumulative = act(memory, observation, last_action)
        action = categorical.sample(cumulative, uniform)
        moved_observation, moved_state, reward, terminated, _ = env.step_env(
            key_move, state, action, env_params
        )
        truncated = env.is_truncated(moved_state, env_params)
        transition = Transition(
            observation=observation,
            action=action,
            reward=jnp.where(live, reward, 0.0),
            terminated=live & terminated,
            truncated=live & truncated & ~terminated,
            live=live,
            next_observation=jnp.where(live, moved_observation, observation),
        )
        # The end is held, so that no environment is stepped from where it has no meaning.
        now, moved = (observation, state), (moved_observation, moved_state)
        held = jax.tree.map(lambda new, old: jnp.where(live, new, old), moved, now)
        live = live & ~terminated & ~truncated
        return ((*held, live), memory, action), transition

    carry = ((*start, jnp.bool_(True)), memory, jnp.int32(-1))
    _, transitions = jax.lax.scan(step, carry, (uniforms, move_keys))
    return transitions


def expert_episodes(
    keys: Key[Array, "E B"],
    networks: Networks,
    heads: Params,
    env: Environment,
    env_params: EnvParams,
    num_steps: int,
) -> Transition:
    """Each expert acts in its own block of environments: the draw of the expert is stratified.

    Returns:
      Transitions [E, B, T].
    """

    def block(keys, head):
        policy = networks.tabulate(
            lambda observation: categorical.cumulative_probs(networks.log_probs(head, observation))
        )
        return _episodes(keys, policy, env, env_params, num_steps)

    return jax.vmap(block)(keys, heads)


def observer_episodes(
    keys: Key[Array, " N"],
    networks: Networks,
    observer: LogProbsFn,
    env: Environment,
    env_params: EnvParams,
    num_steps: int,
) -> Transition:
    """The observer's policy acts in every environment, at every state.

    Returns:
      Transitions [N, T].
    """
    policy = networks.tabulate(
        lambda observation: categorical.cumulative_probs(observer(observation))
    )
    return _episodes(keys, policy, env, env_params, num_steps)


def stream(
    key: PRNGKey,
    cumulative_probs: Callable[[Shaped[Array, "..."]], Float[Array, "E A"]],
    env: Environment,
    env_params: EnvParams,
    num_steps: int,
) -> tuple[Transition, Int[Array, " T"]]:
    """Episode after episode of an ensemble, with autoreset; an expert is drawn for each episode.

    Args:
      key: drives starts, draws of the expert, actions and transitions.
      cumulative_probs: an observation to P(action ≤ a) of every expert.
      env: any gymnax environment.
      env_params: its parameters.
      num_steps: T.

    Returns:
      Transitions [T], all of them live, and the expert that acted in each step.
    """
    key_start, key_draws, key_moves = jax.random.split(key, 3)
    start = env.reset(key_start, env_params)
    draws = jax.random.uniform(key_draws, (num_steps + 1, 2))
    move_keys = jax.random.split(key_moves, num_steps)
    num_experts = jax.eval_shape(cumulative_probs, start[0]).shape[0]

    def pick_expert(uniform):
        return jnp.minimum((uniform * num_experts).astype(jnp.int32), num_experts - 1)

    def step(carry, draws):
        observation, state, expert = carry
        (uniform_action, uniform_expert), key_move = draws
        action = categorical.sample(cumulative_probs(observation)[expert], uniform_action)
        next_observation, state, reward, terminated, truncated, info = env.step(
            key_move, state, action, env_params
        )
        transition = Transition(
            observation=observation,
            action=action,
            reward=jnp.asarray(reward, jnp.float32),
            terminated=terminated,
            truncated=truncated & ~terminated,
            live=jnp.bool_(True),
            next_observation=info["final_observation"],
        )
        next_expert = jnp.where(terminated | truncated, pick_expert(uniform_expert), expert)
        return (next_observation, state, next_expert), (transition, expert)

    carry = (*start, pick_expert(draws[-1, 1]))
    _, steps = jax.lax.scan(step, carry, (draws[:-1], move_keys))
    return steps


def _episodes(keys, policy, env, env_params, num_steps) -> Transition:
    def one(key):
        return episode(key, policy, env, env_params, num_steps)

    return jax.vmap(one)(keys)
