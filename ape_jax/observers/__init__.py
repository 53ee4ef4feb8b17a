"""Observers: attackers who try to recover a policy from demonstrations.

An observer is anything with ``fit(key, demonstrations) -> policy``; a policy maps an observation to
log-probabilities of the actions. Policies are pytrees, so ``fit`` can be jitted and vmapped.
"""

from typing import Protocol

from ape_jax.demonstrations import Demonstrations
from ape_jax.observers.behaviour_cloning import BehaviourCloning, TabularCloning
from ape_jax.observers.mixture import Mixture
from ape_jax.types import LogProbsFn, PRNGKey


class Observer(Protocol):
    """Anyone who clones."""

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> LogProbsFn:
        """The policy that this observer deploys, by sampling, after seeing the demonstrations."""
        ...


__all__ = ["BehaviourCloning", "Mixture", "Observer", "TabularCloning"]
