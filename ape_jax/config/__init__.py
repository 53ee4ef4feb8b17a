"""Settings: configs shape the compiled program (static), and hypers are numbers in it (traced)."""

import dataclasses

import jax

from ape_jax.settings.algorithms import (
    Hypers,
    PGConfig,
    PGHypers,
    PPOConfig,
    PPOHypers,
    TrainConfig,
)
from ape_jax.settings.recipes import recipe
from ape_jax.settings.run import ALL_SETTINGS, CHUNK, HELP, RunConfig, read_settings, resolve

for _hypers in (PGHypers, PPOHypers):
    _names = [field.name for field in dataclasses.fields(_hypers)]
    jax.tree_util.register_dataclass(_hypers, data_fields=_names, meta_fields=[])

__all__ = [
    "ALL_SETTINGS",
    "CHUNK",
    "HELP",
    "Hypers",
    "PGConfig",
    "PGHypers",
    "PPOConfig",
    "PPOHypers",
    "RunConfig",
    "TrainConfig",
    "read_settings",
    "recipe",
    "resolve",
]
