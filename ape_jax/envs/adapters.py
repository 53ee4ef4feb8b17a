"""Adapters that give gymnax environments the interface of Gymnasium."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnax.environments import spaces
from gymnax.environments.environment import Environment, EnvParams

from ape_jax import envs
from ape_jax.types import SettingError


class GymnaxEnv(gymnasium.Env):
    """A gymnax environment with the interface of Gymnasium, for policies of other libraries.

    Unlike gymnax's own wrapper it does not start the next episode inside the step that ends one, so
    the last observation is not lost, and an agent that calls ``reset`` skips no episode.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  Gymnasium declares it so.

    def __init__(self, env: Environment, env_params: EnvParams | None = None):
        """Wrap an environment; None takes its default parameters."""
        params = env.default_params if env_params is None else env_params
        self.observation_space = spaces.gymnax_space_to_gym_space(env.observation_space(params))
        self.action_space = spaces.gymnax_space_to_gym_space(env.action_space(params))

        def step(key, state, action):
            key, key_step = jax.random.split(key)
            observation, state, reward, terminated, _ = env.step_env(
                key_step, state, action, params
            )
            truncated = env.is_truncated(state, params) & ~terminated
            return key, state, (observation, reward, terminated, truncated)

        self._reset = jax.jit(lambda key: env.reset_env(key, params))
        self._step = jax.jit(step)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode. A seed determines it and all later episodes."""
        super().reset(seed=seed)
        key = jax.random.key(int(self.np_random.integers(2**31)))
        self._key, key_start = jax.random.split(key)
        observation, self._state = self._reset(key_start)
        return self._as_declared(observation), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take a step. The last step of an episode is terminated or truncated, never both."""
        action = np.asarray(action, self.action_space.dtype)
        self._key, self._state, moved = self._step(self._key, self._state, action)
        observation, reward, terminated, truncated = jax.device_get(moved)
        return self._as_declared(observation), float(reward), bool(terminated), bool(truncated), {}

    def _as_declared(self, observation):
        return np.asarray(observation, self.observation_space.dtype)[()]


def to_gymnasium(env_id: str, env_param: Sequence[str] = ()) -> GymnaxEnv:
    """Make a registered environment with the interface of Gymnasium; parameters are name=value.

    Raises:
      SettingError: no environment or parameter has that name.
    """
    return GymnaxEnv(*envs.make(env_id, envs.parse_overrides(env_param)))


def score(
    policy: Callable[[Any], Any], env: str | gymnasium.Env, episodes: int, seed: int
) -> np.ndarray:
    """Undiscounted return of each episode that a policy of any library plays.

    Args:
      policy: maps an observation to an action, on the host.
      env: the name of a registered environment, or a Gymnasium environment.
      episodes: number of episodes.
      seed: determines starts and transitions. The policy draws its own random numbers.

    Raises:
      SettingError: fewer than one episode, or no environment has that name.
    """
    if episodes < 1:
        raise SettingError(f"episodes must be at least 1; got {episodes}")
    world = to_gymnasium(env) if isinstance(env, str) else env
    returns = np.zeros(episodes)
    for number in range(episodes):
        observation, _ = world.reset(seed=seed if number == 0 else None)
        ended = False
        while not ended:
            observation, reward, terminated, truncated, _ = world.step(policy(observation))
            returns[number] += float(reward)
            ended = terminated or truncated
    return returns
