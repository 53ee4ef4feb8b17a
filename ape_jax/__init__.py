"""Adversarial policy ensembles in JAX: experts that do well, and a clone of them that does not."""

from ape_jax import core, envs, observers
from ape_jax._version import __version__
from ape_jax.algorithms import TrainState, init, make_train, update
from ape_jax.algorithms.common import Metrics
from ape_jax.algorithms.from_samples import update_from_samples
from ape_jax.algorithms.pg import create_state
from ape_jax.algorithms.task import Task, make_task
from ape_jax.config import PGConfig, PGHypers, PPOConfig, PPOHypers, RunConfig, recipe
from ape_jax.core.samples import Samples
from ape_jax.evaluation.audit import audit
from ape_jax.evaluation.reproduce import reproduce
from ape_jax.evaluation.suite import suite
from ape_jax.evaluation.sweep import sweep
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
    "Task",
    "TrainState",
    "__version__",
    "audit",
    "core",
    "create_state",
    "envs",
    "init",
    "make_networks",
    "make_task",
    "make_train",
    "observers",
    "recipe",
    "reproduce",
    "suite",
    "sweep",
    "update",
    "update_from_samples",
]
