"""Trained experts kept on disk, so that they can be attacked again without training them again."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ape_jax._version import __version__
from ape_jax.algorithms.task import Task
from ape_jax.runs.checkpoint import named
from ape_jax.types import Params


def save(path: Path, task: Task, settings: dict[str, Any], heads: Params) -> None:
    """Write heads [K, E, …], and the settings that they were trained with, whole or not at all."""
    from safetensors.numpy import save_file

    arrays = {name: np.ascontiguousarray(x) for name, x in named(heads).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file(arrays, partial, {"settings": _text(settings)})
    partial.replace(path)


def load(path: Path, task: Task, settings: dict[str, Any]) -> Params | None:
    """Heads that were trained with these settings by this version; None if there are none."""
    from safetensors import SafetensorError, safe_open

    shapes = jax.eval_shape(task.networks.init, jax.random.key(0)).heads
    blank = jax.tree.map(lambda x: np.empty(0), shapes)
    structure, names = jax.tree.structure(blank), list(named(blank))
    try:
        with safe_open(path, "numpy") as file:
            if (file.metadata() or {}).get("settings") != _text(settings):
                return None
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    if arrays.keys() != set(names):
        return None
    return jax.tree.unflatten(structure, [arrays[name] for name in names])


def _text(settings: dict[str, Any]) -> str:
    return json.dumps({"ape_jax": __version__, **settings}, sort_keys=True)
