"""Training algorithms: each is a module with ``init`` and ``update``, chosen by the config."""

from collections.abc import Callable
from types import ModuleType

import jax

from ape_jax.algorithms import pg, ppo
from ape_jax.algorithms.common import Metrics
from ape_jax.algorithms.pg import PGState
from ape_jax.algorithms.ppo_state import PPOState
from ape_jax.algorithms.task import Task, make_task
from ape_jax.config import Hypers, TrainConfig
from ape_jax.envs import Environment, EnvParams
from ape_jax.types import PRNGKey, RewardFn

TrainState = PGState | PPOState
"""Everything that an update changes; has ``params``, ``opt_state``, ``key`` and ``multipliers``."""


def init(key: PRNGKey, task: Task, hypers: Hypers) -> TrainState:
    """The state before the first update."""
    return _algorithm(task.config).init(key, task, hypers)


def update(
    task: Task, state: TrainState, hypers: Hypers, axis_name: str | None = None
) -> tuple[TrainState, Metrics]:
    """One update; environments may be spread over a mapped axis if the config allows that."""
    return _algorithm(task.config).update(task, state, hypers, axis_name)


def updates(
    task: Task,
    state: TrainState,
    hypers: Hypers,
    num_updates: int,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """Several updates in one scan, with metrics [num_updates]."""
    return jax.lax.scan(
        lambda state, _: update(task, state, hypers, axis_name), state, length=num_updates
    )


def make_train(
    config: TrainConfig,
    env: Environment | None = None,
    env_params: EnvParams | None = None,
    observer_reward: RewardFn | None = None,
) -> Callable[[PRNGKey, Hypers], tuple[TrainState, Metrics]]:
    """A whole training run as one pure function, for ``jit``, and ``vmap`` over keys or hypers.

    The arguments are those of ``make_task``, and so are the errors raised.

    Returns:
      ``train(key, hypers) -> (final state, metrics [num_updates])``.

    Examples:
      >>> import jax
      >>> from ape_jax import PGConfig, PGHypers, make_train
      >>> train = jax.jit(make_train(PGConfig(num_updates=2, envs_per_expert=4)))
      >>> state, metrics = train(jax.random.key(0), PGHypers(beta=0.3))
      >>> metrics.expert_returns.shape
      (2, 2)
    """
    task = make_task(config, env, env_params, observer_reward)

    def train(key: PRNGKey, hypers: Hypers) -> tuple[TrainState, Metrics]:
        return updates(task, init(key, task, hypers), hypers, config.num_updates)

    return train


def steps_per_update(task: Task) -> int:
    """Environment steps in one update of one seed, the experts' and the observer's.

    With pg they include the steps that pad episodes to the time limit.
    """
    return _algorithm(task.config).steps_per_update(task)


def _algorithm(config: TrainConfig) -> ModuleType:
    return {"pg": pg, "ppo": ppo}[config.algorithm]
