"""Environments so small that every value and the best policy are known."""

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces


@struct.dataclass
class EnvState(environment.EnvState):
    time: jax.Array
    sign: jax.Array


@struct.dataclass
class EnvParams(environment.EnvParams):
    max_steps_in_episode: int = 1000
    length: int | jax.Array = 0
    clock: bool | jax.Array = False
    table: jax.Array | None = None


class Probe(environment.Environment):
    """States 0 and 1 by a fair coin, or by the time; an end after so many steps, or never."""

    def __init__(self, reward, length=None, clock=False, limit=1000, continuous=False):
        """Take ``reward(state, action)``, given in the last of ``length`` steps or in every one.

        A table [S, A] of rewards in the parameters takes the place of the function.
        """
        super().__init__()
        self.reward, self.continuous = reward, continuous
        self.params = EnvParams(limit, length or 0, clock)

    @property
    def name(self):
        return "Probe"

    @property
    def default_params(self):
        return self.params

    def reset_env(self, key, params):
        state = EnvState(time=jnp.int32(0), sign=jax.random.bernoulli(key).astype(jnp.int32))
        return self.observe(key, state, None, params), state

    def step_env(self, key, state, action, params):
        shown = self.observe(key, state, action, params)
        last = (params.length == 0) | (state.time == params.length - 1)
        reward = self.reward(shown, action) if params.table is None else params.table[shown, action]
        reward = jnp.where(last, reward, 0.0)
        state = EnvState(time=state.time + 1, sign=jax.random.bernoulli(key).astype(jnp.int32))
        observation = self.observe(key, state, action, params)
        return observation, state, reward, self.is_terminated(state, params), {}

    def observe(self, key, state, action, params):
        shown = jnp.where(params.clock, jnp.minimum(state.time, 1), state.sign)
        return jnp.stack([2.0 * shown - 1.0]) if self.continuous else shown

    def is_terminated(self, state, params):
        return (params.length > 0) & (state.time >= params.length)

    def action_space(self, params=None):
        return spaces.Box(-2.0, 2.0, (1,)) if self.continuous else spaces.Discrete(2)

    def observation_space(self, params=None):
        return spaces.Box(-1.0, 1.0, (1,)) if self.continuous else spaces.Discrete(2)
