"""Demonstrations as a Minari dataset, which other libraries read."""

import shutil
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import jax
import numpy as np
from gymnasium.envs.registration import EnvSpec
from jaxtyping import Array, Int

from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.envs.adapters import to_gymnasium
from ape_jax.types import SettingError


def check_minari(dataset_id: str) -> ModuleType:
    """Check that demonstrations can be exported under a name, and return Minari.

    Raises:
      SettingError: Minari is not installed, the name is malformed, or such a dataset exists.
    """
    try:
        import h5py  # noqa: F401  Minari's storage, in its own extra.
        import minari
        from minari.dataset.minari_dataset import DATASET_ID_RE
    except ImportError as error:
        raise SettingError(
            f"export to Minari needs the interop extra; {error.name} is not installed. "
            "Run: pip install 'ape-jax[interop]'"
        ) from None
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
    return minari


def to_minari(
    dataset_id: str,
    env_id: str,
    demonstrations: Demonstrations,
    hidden_expert: Int[Array | np.ndarray, " N"] | None = None,
    env_param: Sequence[str] = (),
) -> Any:
    """Export demonstrations as a local ``minari.MinariDataset``, whole or not at all.

    Minari needs two things that demonstrations do not hold. It has one observation after the last
    action of an episode: the last observation is repeated there. And every episode ends with a
    mark: an episode that was cut short is marked truncated at its last step.

    Args:
      dataset_id: name and version, such as ``gridworld/ape-v0``.
      env_id: the environment, which ``recover_environment()`` of the dataset makes again.
      demonstrations: steps [N].
      hidden_expert: exported in the ``infos`` of each episode; None leaves it out.
      env_param: the environment's parameters that differ from its defaults, as name=value.

    Raises:
      SettingError: as in ``check_minari``; or no environment has that name, or the dataset cannot
        be written.
    """
    minari = check_minari(dataset_id)
    from minari.storage import get_dataset_path

    world = to_gymnasium(env_id, env_param)
    steps = jax.tree.map(np.asarray, demonstrations)
    changes = np.flatnonzero(np.diff(steps.episode)) + 1
    buffers = []
    hidden = {} if hidden_expert is None else {"hidden_expert": np.asarray(hidden_expert)}
    for number, rows in enumerate(np.split(np.arange(len(steps.action)), changes)):
        observed = np.append(rows, rows[-1])
        terminated, truncated = steps.terminated[rows], steps.truncated[rows].copy()
        truncated[-1] |= ~terminated[-1]
        buffers.append(
            minari.data_collector.EpisodeBuffer(
                id=number,
                observations=steps.observation[observed],
                actions=steps.action[rows],
                rewards=steps.reward[rows],
                terminations=terminated,
                truncations=truncated,
                infos={name: experts[observed] for name, experts in hidden.items()} or None,
            )
        )
    spec = EnvSpec(
        id=f"gymnax/{env_id}",
        entry_point="ape_jax.envs.adapters:to_gymnasium",
        kwargs={"env_id": env_id, "env_param": list(env_param)},
        disable_env_checker=True,
    )
    try:
        with warnings.catch_warnings():
            # Minari warns that author and algorithm are missing, which only the user can name.
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
