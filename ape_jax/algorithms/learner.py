"""Training: the first state, and the whole run as one pure function."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from gymnax.environments.environment import Environment, EnvParams

from ape_jax.algorithms import pg, ppo
from ape_jax.algorithms.common import (
    FIRST_MULTIPLIER,
    Metrics,
    Task,
    TrainState,
    make_task,
    optimizer,
)
from ape_jax.config import Hypers, TrainConfig
from ape_jax.networks import Networks
from ape_jax.types import PRNGKey, RewardFn


def create_state(key: PRNGKey, networks: Networks, hypers: Hypers) -> TrainState:
    """Fresh parameters and optimiser state."""
    key_params, key_state = jax.random.split(key)
    params = networks.init(key_params)
    return TrainState(
        params=params,
        opt_state=optimizer(hypers).init(params),
        key=key_state,
        multipliers=(
            None if hypers.min_return is None else jnp.full(networks.num_experts, FIRST_MULTIPLIER)
        ),
        networks=networks,
    )


def begin(key: PRNGKey, task: Task, hypers: Hypers) -> TrainState:
    """The state before the first update of a run."""
    state = create_state(key, task.networks, hypers)
    if task.config.algorithm == "pg":
        return state
    return ppo.begin(task, hypers, state)


def make_train(
    config: TrainConfig,
    env: Environment | None = None,
    env_params: EnvParams | None = None,
    observer_reward: RewardFn | None = None,
) -> Callable[[PRNGKey, Hypers], tuple[TrainState, Metrics]]:
    """A whole training run as one pure function: jit it, vmap it over keys or hyperparameters.

    Args:
      config: static settings.
      env: as in ``make_task``.
      env_params: as in ``make_task``.
      observer_reward: as in ``make_task``.

    Returns:
      ``train(key, hypers) -> (final state, metrics [num_updates])``.

    Raises:
      SettingError: settings that do not fit each other.
    """
    task = make_task(config, env, env_params, observer_reward)

    def train(key: PRNGKey, hypers: Hypers) -> tuple[TrainState, Metrics]:
        state = begin(key, task, hypers)
        return updates(task, state, hypers, config.num_updates)

    return train


def update(
    task: Task, state: TrainState, hypers: Hypers, axis_name: str | None = None
) -> tuple[TrainState, Metrics]:
    """One update, as ``ape_jax.pg.update`` or ``ape_jax.ppo.update`` does it."""
    if task.config.algorithm == "pg":
        return pg.update(task, state, hypers, axis_name)
    assert axis_name is None, "ppo carries its environments, and spreads seeds alone"
    return ppo.update(task, state, hypers)


def updates(
    task: Task,
    state: TrainState,
    hypers: Hypers,
    num_updates: int,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """So many updates in one scan; metrics [num_updates]."""
    return jax.lax.scan(
        lambda state, _: update(task, state, hypers, axis_name), state, length=num_updates
    )
