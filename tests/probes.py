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


class Probe(environment.Environment):
    """States 0 and 1 by a fair coin, or by the time; an end after so many steps, or never."""

    def __init__(self, reward, length=None, clock=False, limit=1000, continuous=False):
        """Take ``reward(state, action)``, given in the last of ``length`` steps or in every one."""
        super().__init__()
        self.reward, self.length, self.clock = reward, length, clock
        self.limit, self.continuous = limit, continuous

    @property
    def name(self):
        return "Probe"

    @property
    def default_params(self):
        return EnvParams(max_steps_in_episode=self.limit)

    def reset_env(self, key, params):
        state = EnvState(time=jnp.int32(0), sign=jax.random.bernoulli(key).astype(jnp.int32))
        return self.observe(key, state, None, params), state

    def step_env(self, key, state, action, params):
        acted_on = self.observe(key, state, action, params)
        last = self.length is None or state.time == self.length - 1
        reward = jnp.where(last, self.reward(acted_on, action), 0.0)
        state = EnvState(time=state.time + 1, sign=jax.random.bernoulli(key).astype(jnp.int32))
        observation = self.observe(key, state, action, params)
        return observation, state, reward, self.is_terminated(state, params), {}

    def observe(self, key, state, action, params):
        number = jnp.minimum(state.time, 1) if self.clock else state.sign
        return jnp.stack([2.0 * number - 1.0]) if self.continuous else number

    def is_terminated(self, state, params):
        return jnp.bool_(False) if self.length is None else state.time >= self.length

    def action_space(self, params=None):
        return spaces.Box(-2.0, 2.0, (1,)) if self.continuous else spaces.Discrete(2)

    def observation_space(self, params=None):
        return spaces.Box(-1.0, 1.0, (1,)) if self.continuous else spaces.Discrete(2)
