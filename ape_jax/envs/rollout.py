"""The one place that steps environments."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from gymnax.environments.environment import Environment, EnvParams
from jaxtyping import Array, Float, Int, Key, Shaped

from ape_jax.core import categorical, random
from ape_jax.networks import Networks
from ape_jax.types import (
    LogProbsFn,
    MemoryPolicy,
    Params,
    PRNGKey,
    Transition,
)


def episodes(
    keys: Key[Array, " N"],
    cumulative_probs: Callable[[Shaped[Array, "N ..."]], Float[Array, "N A"]],
    env: Environment,
    env_params: EnvParams,
    num_steps: int,
) -> Transition:
    """One episode a key from a fresh start, padded to ``num_steps`` with steps that are not live.

    Episodes advance side by side, one step of all at a time.

    Args:
      keys: each drives start, actions and transitions of its episode, from streams of their own.
      cumulative_probs: the policies: one observation an episode to P(action ≤ a) of each.
      env: any gymnax environment.
      env_params: its parameters.
      num_steps: T; an episode that is longer is cut there without being marked truncated.

    Returns:
      Transitions [T, N]. After the end the last state is repeated with reward zero.
    """

    def act(memory, observations, _):
        return memory, cumulative_probs(observations)

    return _episodes(keys, act, None, env, env_params, num_steps)


def episodes_with_memory(
    keys: Key[Array, " N"],
    policy: MemoryPolicy,
    env: Environment,
    env_params: EnvParams,
    num_steps: int,
) -> Transition:
    """As ``episodes``, of one policy that remembers what it saw and did in the episode."""

    def act(memory, observation, last_action):
        memory, log_probs = policy(memory, observation, last_action)
        return memory, categorical.cumulative_probs(log_probs)

    memory = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (keys.shape[0], *jnp.shape(x))), policy.start()
    )
    return _episodes(keys, jax.vmap(act), memory, env, env_params, num_steps)


def _episodes(keys, act, memory, env, env_params, num_steps) -> Transition:
    # Without the barrier the split is fused into, and repeated for, every number drawn from it.
    start_keys, action_keys, move_keys = jax.lax.optimization_barrier(random.split(keys, 3))
    start = jax.vmap(env.reset_env, in_axes=(0, None))(start_keys, env_params)
    draws = random.uniforms(action_keys, num_steps), random.split(move_keys, num_steps)

    def step(carry, draws):
        (observations, states, live), memory, last_actions = carry
        uniforms, keys = draws
        memory, cumulative = act(memory, observations, last_actions)
        actions = jax.vmap(categorical.sample)(cumulative, uniforms)
        moved_observations, moved_states, rewards, terminated, _ = jax.vmap(
            env.step_env, in_axes=(0, 0, 0, None)
        )(keys, states, actions, env_params)
        truncated = jax.vmap(env.is_truncated, in_axes=(0, None))(moved_states, env_params)
        # The end is held, so that no environment is stepped from where it has no meaning.
        held = jax.tree.map(
            lambda new, old: jnp.where(live.reshape(-1, *[1] * (new.ndim - 1)), new, old),
            (moved_observations, moved_states),
            (observations, states),
        )
        transitions = Transition(
            observation=observations,
            action=actions,
            reward=jnp.where(live, rewards, 0.0),
            terminated=live & terminated,
            truncated=live & truncated & ~terminated,
            mask=live,
            next_observation=held[0],
        )
        return ((*held, live & ~terminated & ~truncated), memory, actions), transitions

    num_episodes = keys.shape[0]
    carry = (
        (*start, jnp.ones(num_episodes, bool)),
        memory,
        jnp.full(num_episodes, -1, jnp.int32),
    )
    _, transitions = jax.lax.scan(step, carry, draws)
    return transitions


def ensemble_episodes(
    expert_keys: Key[Array, "E B"],
    observer_keys: Key[Array, " N"],
    networks: Networks,
    heads: Params,
    observer: LogProbsFn,
    env: Environment,
    env_params: EnvParams,
    num_steps: int,
) -> tuple[Transition, Transition]:
    """Episodes of every expert and of the observer, all in one loop over time.

    Each expert acts in its own block of environments: the draw of the expert is stratified. The
    observer's policy acts in every one of its own, at every state.

    Returns:
      Transitions [T, E, B] and [T, N].
    """
    num_experts, block = expert_keys.shape
    num_expert_episodes = num_experts * block
    keys = jnp.concatenate([expert_keys.reshape(-1), observer_keys])

    def expert(head, observation):
        return categorical.cumulative_probs(networks.log_probs(head, observation))

    def clone(observation):
        return categorical.cumulative_probs(observer(observation))

    if networks.num_states is not None:
        states = jnp.arange(networks.num_states, dtype=jnp.int32)
        at_states = jax.vmap(jax.vmap(expert, in_axes=(None, 0)), in_axes=(0, None))
        tables = jnp.concatenate([at_states(heads, states), jax.vmap(clone)(states)[None]])
        actors = jnp.repeat(jnp.arange(num_experts), block)
        actors = jnp.append(actors, jnp.full(observer_keys.shape[0], num_experts))

        def act(observations):
            return tables[actors, observations]

    else:

        def act(observations):
            of_experts = observations[:num_expert_episodes]
            blocks = of_experts.reshape(num_experts, block, *observations.shape[1:])
            experts = jax.vmap(jax.vmap(expert, in_axes=(None, 0)))(heads, blocks)
            clones = jax.vmap(clone)(observations[num_expert_episodes:])
            return jnp.concatenate([experts.reshape(num_expert_episodes, -1), clones])

    both = episodes(keys, act, env, env_params, num_steps)
    experts = jax.tree.map(
        lambda x: x[:, :num_expert_episodes].reshape(num_steps, num_experts, block, *x.shape[2:]),
        both,
    )
    return experts, jax.tree.map(lambda x: x[:, num_expert_episodes:], both)


class Streams(NamedTuple):
    """Environments between two segments of their endless streams of episodes."""

    observation: Shaped[Array, "N ..."]
    """What every stream's actor sees next."""
    state: Any
    """The environments' own, [N, …]."""
    episode_return: Float[Array, " N"]
    """Of the episode so far."""
    discounted_return: Float[Array, " N"]
    """Σ γ^k r_{t−k} of the episode so far: its spread is the scale of rewards."""


def begin(keys: Key[Array, " N"], env: Environment, env_params: EnvParams) -> Streams:
    """Fresh episodes, one a key."""
    observation, state = jax.vmap(env.reset_env, in_axes=(0, None))(keys, env_params)
    nothing = jnp.zeros(keys.shape[0])
    return Streams(observation, state, nothing, nothing)


class Segment(NamedTuple):
    """What a segment brings besides its transitions, [T, N]."""

    episode_return: Float[Array, "T N"]
    """Of the episode up to this step: undiscounted."""
    discounted_return: Float[Array, "T N"]
    """Σ γ^k r_{t−k} of the episode up to this step."""
    log_prob: Float[Array, "T N"]
    """Of the action, under the policy that took it."""


def segment(
    keys: Key[Array, " N"],
    streams: Streams,
    act: Callable,
    env: Environment,
    env_params: EnvParams,
    num_steps: int,
    num_uniforms: int,
    gamma: Float[Array, ""] | float,
    legal: Callable,
) -> tuple[Streams, Transition, Segment]:
    """Go on with streams of episodes, with autoreset.

    Args:
      keys: drive actions, transitions and resets of each stream.
      streams: where they stand.
      act: observations [N, …] and uniform numbers [N, U] to actions [N, …] and their
        log-probabilities.
      env: any gymnax environment.
      env_params: its parameters.
      num_steps: T.
      num_uniforms: U.
      gamma: γ of the discounted returns.
      legal: an action to the one that the environment is given.

    Returns:
      Where the streams then stand, transitions [T, N], all of them live, and their returns.
    """
    action_keys, move_keys = jax.lax.optimization_barrier(random.split(keys, 2))
    uniforms = random.uniforms(action_keys, num_steps * num_uniforms)
    uniforms = uniforms.reshape(num_steps, num_uniforms, -1).swapaxes(1, 2)
    moves = random.split(move_keys, 2 * num_steps)

    def step(streams, draws):
        uniforms, step_keys, reset_keys = draws
        observation, state, episode_return, discounted_return = streams
        actions, log_probs = act(observation, uniforms)
        moved = jax.vmap(env.step_env, in_axes=(0, 0, 0, None))
        next_observation, next_state, reward, terminated, _ = moved(
            step_keys, state, legal(actions), env_params
        )
        truncated = jax.vmap(env.is_truncated, in_axes=(0, None))(next_state, env_params)
        reward = jnp.asarray(reward, jnp.float32)
        ended = terminated | truncated
        transition = Transition(
            observation=observation,
            action=actions,
            reward=reward,
            terminated=terminated,
            truncated=truncated & ~terminated,
            mask=jnp.ones_like(ended),
            next_observation=next_observation,
        )
        episode_return = episode_return + reward
        discounted_return = gamma * discounted_return + reward
        returns = Segment(episode_return, discounted_return, log_probs)
        fresh = jax.vmap(env.reset_env, in_axes=(0, None))(reset_keys, env_params)
        observation, state = jax.tree.map(
            lambda new, old: jnp.where(ended.reshape(-1, *[1] * (new.ndim - 1)), new, old),
            fresh,
            (next_observation, next_state),
        )
        going_on = 1.0 - ended.astype(jnp.float32)
        streams = Streams(
            observation, state, episode_return * going_on, discounted_return * going_on
        )
        return streams, (transition, returns)

    streams, (transitions, returns) = jax.lax.scan(
        step, streams, (uniforms, moves[:num_steps], moves[num_steps:])
    )
    return streams, transitions, returns


def episode_returns(
    keys: Key[Array, " N"],
    act: Callable,
    env: Environment,
    env_params: EnvParams,
    num_steps: int,
    num_uniforms: int,
) -> Float[Array, " N"]:
    """Undiscounted returns of one episode a key, in a loop that ends with the last of them.

    Args:
      keys: each drives start, actions and transitions of its episode.
      act: observations [N, …] and uniform numbers [N, U] to actions [N, …].
      env: any gymnax environment.
      env_params: its parameters.
      num_steps: T; an episode that is longer is cut there.
      num_uniforms: U.
    """
    start_keys, action_keys, move_keys = jax.lax.optimization_barrier(random.split(keys, 3))
    start = jax.vmap(env.reset_env, in_axes=(0, None))(start_keys, env_params)
    uniforms = random.uniforms(action_keys, num_steps * num_uniforms)
    uniforms = uniforms.reshape(num_steps, num_uniforms, -1).swapaxes(1, 2)
    moves = random.split(move_keys, num_steps)

    def going_on(carry):
        time, _, live, _ = carry
        return (time < num_steps) & jnp.any(live)

    def step(carry):
        time, (observation, state), live, returns = carry
        actions = act(observation, uniforms[time])
        observation, moved, reward, terminated, _ = jax.vmap(env.step_env, in_axes=(0, 0, 0, None))(
            moves[time], state, actions, env_params
        )
        truncated = jax.vmap(env.is_truncated, in_axes=(0, None))(moved, env_params)
        # The end is held, so that no environment is stepped from where it has no meaning.
        state = jax.tree.map(
            lambda new, old: jnp.where(live.reshape(-1, *[1] * (new.ndim - 1)), new, old),
            moved,
            state,
        )
        returns = returns + jnp.where(live, reward, 0.0)
        return time + 1, (observation, state), live & ~terminated & ~truncated, returns

    num_episodes = keys.shape[0]
    carry = (0, start, jnp.ones(num_episodes, bool), jnp.zeros(num_episodes))
    return jax.lax.while_loop(going_on, step, carry)[-1]


def stream(
    key: PRNGKey,
    act: Callable,
    num_experts: int,
    env: Environment,
    env_params: EnvParams,
    num_steps: int,
    num_uniforms: int = 1,
) -> tuple[Transition, Int[Array, " T"]]:
    """Episode after episode of an ensemble, with autoreset; an expert is drawn for each episode.

    Args:
      key: drives starts, draws of the expert, actions and transitions.
      act: an observation, the number of the expert and uniform numbers [U] to its action.
      num_experts: E.
      env: any gymnax environment.
      env_params: its parameters.
      num_steps: T.
      num_uniforms: U.

    Returns:
      Transitions [T], all of them live, and the expert that acted in each step.
    """
    key_start, key_draws, key_moves = jax.random.split(key, 3)
    start = env.reset(key_start, env_params)
    draws = jax.random.uniform(key_draws, (num_steps + 1, num_uniforms + 1))
    move_keys = jax.random.split(key_moves, num_steps)

    def pick_expert(uniform):
        return jnp.minimum((uniform * num_experts).astype(jnp.int32), num_experts - 1)

    def step(carry, draws):
        observation, state, expert = carry
        uniforms, key_move = draws
        action = act(observation, expert, uniforms[:-1])
        next_observation, state, reward, terminated, truncated, info = env.step(
            key_move, state, action, env_params
        )
        transition = Transition(
            observation=observation,
            action=action,
            reward=jnp.asarray(reward, jnp.float32),
            terminated=terminated,
            truncated=truncated & ~terminated,
            mask=jnp.bool_(True),
            next_observation=info["final_observation"],
        )
        next_expert = jnp.where(terminated | truncated, pick_expert(uniforms[-1]), expert)
        return (next_observation, state, next_expert), (transition, expert)

    carry = (*start, pick_expert(draws[-1, -1]))
    _, steps = jax.lax.scan(step, carry, (draws[:-1], move_keys))
    return steps
