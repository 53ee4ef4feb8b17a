"""Settings: configs shape the compiled program (static), and hypers are numbers in it (traced)."""

from ape_jax.config.algorithms import Hypers, PGConfig, PGHypers, PPOConfig, PPOHypers, TrainConfig
from ape_jax.config.recipes import recipe
from ape_jax.config.run import ALL_SETTINGS, CHUNK, HELP, RunConfig, read_settings, resolve

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
