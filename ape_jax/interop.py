"""Doors to other libraries: demonstrations for Minari, environments for Gymnasium."""

import itertools
import shutil
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnax.environments import spaces
from gymnax.environments.environment import Environment, EnvParams
from jaxtyping import Array, Int

from ape_jax import envs
from ape_jax.demonstrations import Demonstrations
from ape_jax.types import SettingError


class GymnaxEnv(gymnasium.Env):
    """A gymnax environment with Gymnasium's face, for policies of other libraries.

    gymnax's own wrapper starts the next episode within the step that ends one, so the last
    observation of an episode is lost there, and an agent that resets skips a start.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  Gymnasium's own way.

    def __init__(self, env: Environment, env_params: EnvParams | None = None):
        """Wrap an environment.

        Args:
          env: any gymnax environment.
          env_params: its parameters; its defaults if None.
        """
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
        """Start an episode; a seed decides it and all that follow."""
        super().reset(seed=seed)
        key = jax.random.key(int(self.np_random.integers(2**31)))
        self._key, key_start = jax.random.split(key)
        observation, self._state = self._reset(key_start)
        return self._shown(observation), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Move; terminated or truncated, never both, at the end."""
        action = np.asarray(action, self.action_space.dtype)
        self._key, self._state, moved = self._step(self._key, self._state, action)
        observation, reward, terminated, truncated = jax.device_get(moved)
        return self._shown(observation), float(reward), bool(terminated), bool(truncated), {}

    def _shown(self, observation):
        return np.asarray(observation, self.observation_space.dtype)[()]


def to_gymnasium(env_id: str, env_param: Sequence[str] = ()) -> GymnaxEnv:
    """Make any registered gymnax environment as a Gymnasium one.

    Args:
      env_id: its name.
      env_param: its parameters that differ from its defaults, as name=value.

    Raises:
      SettingError: no environment has that name, or no parameter.
    """
    return GymnaxEnv(*envs.make(env_id, envs.parse_overrides(env_param)))


def score(
    policy: Callable[[Any], Any], env: str | gymnasium.Env, episodes: int, seed: int
) -> np.ndarray:
    """Undiscounted return of each of so many episodes.

    Args:
      policy: an observation to an action, on the host; a policy of any library.
      env: a registered gymnax id, or a Gymnasium environment.
      episodes: how many.
      seed: decides starts and transitions; the policy draws for itself.

    Returns:
      Returns [episodes], in float64.
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


def check_minari(dataset_id: str) -> None:
    """Check that demonstrations can be exported under a name.

    Raises:
      SettingError: Minari is not installed, the name is malformed, or a dataset has it already.
    """
    minari = _import_minari()
    from minari.dataset.minari_dataset import DATASET_ID_RE

    match = DATASET_ID_RE.fullmatch(dataset_id)
    if match is None or match.group("version") is None:
        raise SettingError(
            "minari must be a dataset name of letters, digits, - and _ that ends in a version, "
            f"such as gridworld/ape-v0; got {dataset_id!r}"
        )
    if dataset_id in minari.list_local_datasets():
        raise SettingError(
            f"minari must name a dataset that does not exist yet; {dataset_id!r} does. "
            f"Choose a higher version, or run: minari delete {dataset_id}"
        )


def to_minari(
    dataset_id: str,
    env_id: str,
    demonstrations: Demonstrations,
    hidden_expert: Int[Array, " N"] | None = None,
    env_param: Sequence[str] = (),
) -> Any:
    """Export demonstrations as a local Minari dataset, whole or not at all.

    Minari wants what demonstrations do not hold. After the last action of an episode it has one
    more observation: the last one is repeated there. Every episode of its own ends in a mark: one
    that was cut short is marked truncated at its last step.

    Args:
      dataset_id: name and version, such as ``gridworld/ape-v0``.
      env_id: the registered environment that they come from; ``recover_environment()`` of the
        dataset makes it.
      demonstrations: steps [N].
      hidden_expert: the expert that acted in each step [N], exported in each episode's ``infos``;
        left out if None.
      env_param: the environment's parameters that differ from its defaults, as name=value.

    Returns:
      The ``minari.MinariDataset``.

    Raises:
      SettingError: as ``check_minari``, or no environment has that name.
    """
    minari = _import_minari()
    check_minari(dataset_id)
    from minari.storage import get_dataset_path

    world = to_gymnasium(env_id, env_param)
    steps = jax.tree.map(np.asarray, demonstrations)
    begins = np.concatenate([[0], np.flatnonzero(np.diff(steps.episode)) + 1, [len(steps.action)]])
    buffers = []
    for number, (begin, end) in enumerate(itertools.pairwise(begins)):
        rows = np.arange(begin, end)
        observed = np.append(rows, end - 1)
        terminated, truncated = steps.terminated[rows], steps.truncated[rows].copy()
        truncated[-1] |= ~terminated[-1]
        infos = None
        if hidden_expert is not None:
            infos = {"hidden_expert": np.asarray(hidden_expert)[observed]}
        buffers.append(
            minari.data_collector.EpisodeBuffer(
                id=number,
                observations=steps.observation[observed],
                actions=steps.action[rows],
                rewards=steps.reward[rows],
                terminations=terminated,
                truncations=truncated,
                infos=infos,
            )
        )
    spec = EnvSpec(
        id=f"gymnax/{env_id}",
        entry_point="ape_jax.interop:to_gymnasium",
        kwargs={"env_id": env_id, "env_param": list(env_param)},
        disable_env_checker=True,
    )
    try:
        with warnings.catch_warnings():
            # It misses an author and an algorithm, which only the user can name.
            warnings.simplefilter("ignore", UserWarning)
            return minari.create_dataset_from_buffers(
                dataset_id,
                buffers,
                env=spec,
                observation_space=world.observation_space,
                action_space=world.action_space,
                description=f"Pooled demonstrations of an ensemble in gymnax {env_id}",
                data_format="hdf5",
                jpeg_encoding=False,
            )
    except BaseException as error:
        shutil.rmtree(get_dataset_path(dataset_id), ignore_errors=True)
        if isinstance(error, OSError):
            raise SettingError(
                f"minari must name a dataset that can be written; got {dataset_id!r} ({error}). "
                "Make room, or set MINARI_DATASETS_PATH to another directory"
            ) from None
        raise


def _import_minari():
    try:
        import h5py  # noqa: F401  Minari's storage, in its own extra.
        import minari
    except ImportError as error:
        raise SettingError(
            f"export to Minari needs the interop extra; {error.name} is not installed. "
            "Run: pip install 'ape-jax[interop]'"
        ) from None
    return minari
