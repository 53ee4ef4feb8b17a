"""Observers: attackers who try to recover a policy from demonstrations.

An observer is anything with ``fit(key, demonstrations) -> policy``. A policy is a pytree, so that
``fit`` can be jitted and vmapped. It maps an observation to log-probabilities of the actions, or is
a ``MemoryPolicy`` over histories, or ``Modes`` to choose from, or acts in a continuous space.
"""

from typing import Any, Protocol, runtime_checkable

from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.observers.behaviour_cloning import BehaviourCloning, TabularCloning
from ape_jax.observers.dagger import Dagger
from ape_jax.observers.gaussian_mixture import GaussianMixture, GaussianMixturePolicy
from ape_jax.observers.latent import LatentCloning, TabularLatent
from ape_jax.observers.limited import Limited
from ape_jax.observers.mean_action import MeanAction
from ape_jax.observers.mixture import Mixture
from ape_jax.observers.policies import HeadPolicy, Modes, TablePolicy
from ape_jax.observers.posterior import Posterior
from ape_jax.observers.recurrent import Recurrent
from ape_jax.types import PRNGKey


@runtime_checkable
class Observer(Protocol):
    """Anyone who clones."""

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> Any:
        """The policy that this observer deploys after seeing the demonstrations."""
        ...


__all__ = [
    "BehaviourCloning",
    "Dagger",
    "GaussianMixture",
    "GaussianMixturePolicy",
    "HeadPolicy",
    "LatentCloning",
    "Limited",
    "MeanAction",
    "Mixture",
    "Modes",
    "Observer",
    "Posterior",
    "Recurrent",
    "TablePolicy",
    "TabularCloning",
    "TabularLatent",
]
