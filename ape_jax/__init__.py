"""Adversarial policy ensembles in JAX: experts that do well, and a clone of them that does not."""

from ape_jax import core, envs, observers
from ape_jax._version import __version__
from ape_jax.algorithms.common import Metrics, TrainState, make_task
from ape_jax.algorithms.from_samples import Batch, ape_update
from ape_jax.algorithms.learner import create_state, make_train, update
from ape_jax.config import Hypers, RunConfig, TrainConfig, recipe
from ape_jax.evaluation.audit import audit
from ape_jax.evaluation.reproduce import reproduce
from ape_jax.evaluation.suite import suite
from ape_jax.evaluation.sweep import sweep
from ape_jax.networks import Networks, make_networks
from ape_jax.types import SettingError

__all__ = [
    "Batch",
    "Hypers",
    "Metrics",
    "Networks",
    "RunConfig",
    "SettingError",
    "TrainConfig",
    "TrainState",
    "__version__",
    "ape_update",
    "audit",
    "core",
    "create_state",
    "envs",
    "make_networks",
    "make_task",
    "make_train",
    "observers",
    "recipe",
    "reproduce",
    "suite",
    "sweep",
    "update",
]
