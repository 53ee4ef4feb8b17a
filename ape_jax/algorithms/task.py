"""The task of a training run: an environment, and the networks that act in it."""

import dataclasses
from typing import Generic, TypeVar

import jax

from ape_jax import envs
from ape_jax.config import Hypers, TrainConfig
from ape_jax.envs.world import World
from ape_jax.networks import Networks, make_networks
from ape_jax.types import RewardFn, SettingError

ConfigT = TypeVar("ConfigT", bound=TrainConfig)


@dataclasses.dataclass(frozen=True, eq=False)
class Task(Generic[ConfigT]):
    """Everything that stays the same during a run; the type says which algorithm trains it.

    Tasks are compared and hashed by identity, so that one can be a static argument of ``jax.jit``.
    """

    config: ConfigT
    world: World
    networks: Networks
    observer_reward: RewardFn | None = None
    """r̃, the reward in the observer's term; None means the experts' reward."""


def make_task(
    config: ConfigT,
    env: envs.Environment | None = None,
    env_params: envs.EnvParams | None = None,
    observer_reward: RewardFn | None = None,
) -> Task[ConfigT]:
    """Build the environment and the networks, and check that they fit each other.

    Args:
      config: static settings.
      env: an environment to use instead of ``config.env``, for example one that is not registered.
      env_params: its parameters; None means its defaults.
      observer_reward: r̃, a function of one step (a ``Transition`` without leading axes), which
        takes the place of the environment's reward in the observer's term (paper, section 6).
        Steps after the end of an episode do not count.

    Raises:
      SettingError: the environment is unknown, or does not fit the head or the observer.
    """
    if env is None:
        env, default_params = envs.make(config.env, envs.parse_overrides(config.env_param))
    else:
        default_params = env.default_params
        config = dataclasses.replace(config, env=env.name)
    env_params = default_params if env_params is None else env_params
    if observer_reward is not None and not config.takes_observer_reward:
        raise SettingError(
            f"observer_reward must be None with algorithm={config.algorithm}. Use algorithm=pg"
        )
    with jax.ensure_compile_time_eval():  # A world is made of arrays also while a run is traced.
        mdp = envs.finite_mdp(env, env_params)
    if config.observer == "posterior" and mdp is None:
        raise SettingError(
            f"observer='posterior' needs an environment with a finite MDP, such as "
            f"{envs.GRIDWORLD}; got env={config.env!r}. Use observer='learned'"
        )
    networks = make_networks(
        config, env.observation_space(env_params), env.action_space(env_params)
    )
    world = World(env, env_params, int(env_params.max_steps_in_episode), mdp)
    return Task(config, world, networks, observer_reward)


def check_min_return(task: Task, hypers: Hypers) -> None:
    """Check that an episode can pay the return that experts have to keep.

    Raises:
      SettingError: ``min_return`` is more than an episode can pay.
    """
    if hypers.min_return is None:
        return
    highest = envs.highest_return(task.world.env, task.world.params, task.world.mdp)
    # The best return of a finite MDP is a sum in single precision.
    if highest is not None and hypers.min_return > highest + 1e-4 * max(1.0, abs(highest)):
        raise SettingError(
            f"min_return must be at most {highest:.4g}, which is what an episode of "
            f"{task.config.env} can pay; got {hypers.min_return:g}"
        )
