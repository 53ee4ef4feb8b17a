"""The one place that steps environments."""

import jax
import jax.numpy as jnp
from gymnax.environments.environment import Environment, EnvParams
from jaxtyping import Array, Key

from ape_jax.core import categorical
from ape_jax.networks import Networks
from ape_jax.types import LogProbsFn, Params, PRNGKey, Transition


def episode(
    key: PRNGKey,
    cumulative_probs: LogProbsFn,
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
    key_start, key_actions, key_moves = jax.random.split(key, 3)
    start = env.reset_env(key_start, env_params)
    uniforms = jax.random.uniform(key_actions, (num_steps,))
    move_keys = jax.random.split(key_moves, num_steps)

    def step(carry, draws):
        observation, state, live = carry
        uniform, key_move = draws
        action = categorical.sample(cumulative_probs(observation), uniform)
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
        )
        # The end is held, so that no environment is stepped from where it has no meaning.
        now, moved = (observation, state), (moved_observation, moved_state)
        held = jax.tree.map(lambda new, old: jnp.where(live, new, old), moved, now)
        return (*held, live & ~terminated & ~truncated), transition

    _, transitions = jax.lax.scan(step, (*start, jnp.bool_(True)), (uniforms, move_keys))
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


def _episodes(keys, policy, env, env_params, num_steps) -> Transition:
    one = lambda key: episode(key, policy, env, env_params, num_steps)  # noqa: E731
    return jax.vmap(one)(keys)
