"""Adversarial policy ensembles in JAX: experts that do well, and a clone of them that does not."""

from ape_jax import core, envs, observers
from ape_jax._version import __version__
from ape_jax.algorithms import init, make_train, update
from ape_jax.algorithms.common import Metrics
from ape_jax.algorithms.from_samples import update_from_samples
from ape_jax.algorithms.pg import create_state
from ape_jax.algorithms.task import make_task
from ape_jax.config import PGConfig, PGHypers, PPOConfig, PPOHypers, RunConfig, recipe
from ape_jax.core.samples import Samples
from ape_jax.networks import Networks, make_networks
from ape_jax.types import SettingError

__all__ = [
    "Metrics",
    "Networks",
    "PGConfig",
    "PGHypers",
    "PPOConfig",
    "PPOHypers",
    "RunConfig",
    "Samples",
    "SettingError",
    "__version__",
    "core",
    "create_state",
    "envs",
    "init",
    "make_networks",
    "make_task",
    "make_train",
    "observers",
    "recipe",
    "update",
    "update_from_samples",
]
