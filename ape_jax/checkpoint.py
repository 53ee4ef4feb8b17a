"""Parameters on disk, by Orbax, and runs read back.

Orbax is imported where it is used: that takes half a second, which a training need not wait for.
"""

from pathlib import Path

import jax

from ape_jax.config import RunConfig
from ape_jax.networks import EnsembleParams
from ape_jax.runner import seed_keys
from ape_jax.training import Task, make_task
from ape_jax.types import SettingError


def save_params(run: Path, params: EnsembleParams) -> None:
    """Save the final parameters [K, …] of a run."""
    import orbax.checkpoint.experimental.v1 as ocp

    ocp.save(_final(run), params, overwrite=True)


def load_run(run: Path | str) -> tuple[RunConfig, Task, EnsembleParams]:
    """Read back a run that ``ape-jax train`` made.

    Args:
      run: its directory.

    Returns:
      Its configuration, its task, and its final parameters [K, …].

    Raises:
      SettingError: the directory holds no finished run.
    """
    import orbax.checkpoint.experimental.v1 as ocp

    run = Path(run)
    for part in (run / "config.yaml", _final(run)):
        if not part.exists():
            raise SettingError(f"run must be a directory that ape-jax train made; no {part}")
    config = RunConfig.load(run / "config.yaml")
    task = make_task(config.train)
    keys = seed_keys(config.first_seed, config.seeds)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    expected = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
        jax.eval_shape(jax.vmap(task.networks.init), keys),
    )
    try:
        return config, task, ocp.load(_final(run), expected)
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise SettingError(
            f"run must hold parameters that fit its config.yaml; {_final(run)} is damaged or of "
            f"another configuration ({type(error).__name__}). Train again"
        ) from None


def _final(run: Path) -> Path:
    return run.resolve() / "checkpoints" / "final"
