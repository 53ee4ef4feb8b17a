"""Adversarial policy ensembles in JAX: experts that do well, and a clone of them that does not.

The package imports a public name when it is first used (PEP 562), because JAX and gymnax take a
second to import, and the help of the command line needs neither.
"""

import importlib
from typing import TYPE_CHECKING

from ape_jax._version import __version__

if TYPE_CHECKING:
    from ape_jax import core, envs, observers
    from ape_jax.algorithms import TrainState, init, make_train, update
    from ape_jax.algorithms.common import Metrics
    from ape_jax.algorithms.from_samples import update_from_samples
    from ape_jax.algorithms.pg import create_state
    from ape_jax.algorithms.task import Task, make_task
    from ape_jax.config import PGConfig, PGHypers, PPOConfig, PPOHypers, RunConfig, recipe
    from ape_jax.core.samples import Samples
    from ape_jax.errors import SettingError
    from ape_jax.evaluation.audit import audit
    from ape_jax.evaluation.reproduce import reproduce
    from ape_jax.evaluation.suite import suite
    from ape_jax.evaluation.sweep import sweep
    from ape_jax.networks import Networks, make_networks
else:

    def __getattr__(name: str):
        """A public name, at its first use."""
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = importlib.import_module(f"{__name__}.{_MODULE_OF[name]}")
        value = globals()[name] = getattr(module, name, module)
        return value

    def __dir__() -> list[str]:
        return __all__


_MODULE_OF = {
    "Metrics": "algorithms.common",
    "Networks": "networks",
    "PGConfig": "config",
    "PGHypers": "config",
    "PPOConfig": "config",
    "PPOHypers": "config",
    "RunConfig": "config",
    "Samples": "core.samples",
    "SettingError": "errors",
    "Task": "algorithms.task",
    "TrainState": "algorithms",
    "audit": "evaluation.audit",
    "core": "core",
    "create_state": "algorithms.pg",
    "envs": "envs",
    "init": "algorithms",
    "make_networks": "networks",
    "make_task": "algorithms.task",
    "make_train": "algorithms",
    "observers": "observers",
    "recipe": "config",
    "reproduce": "evaluation.reproduce",
    "suite": "evaluation.suite",
    "sweep": "evaluation.sweep",
    "update": "algorithms",
    "update_from_samples": "algorithms.from_samples",
}
"""The module of each name, as the imports above say it."""

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
