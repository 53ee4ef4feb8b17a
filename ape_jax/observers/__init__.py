"""Observers: attackers who try to recover a policy from demonstrations.

An observer is anything with ``fit(key, demonstrations) -> policy``. The policy is a
``types.Policy`` and a pytree, so that ``fit`` can be jitted and vmapped.
"""

from typing import Protocol, runtime_checkable

from ape_jax.core.policies import TablePolicy
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.observers.advantage_weighted import AdvantageWeighted
from ape_jax.observers.behaviour_cloning import BehaviourCloning, Limited, TabularCloning
from ape_jax.observers.best_temperature import BestTemperature
from ape_jax.observers.candidates import Candidates
from ape_jax.observers.continuous import MeanAction, MixtureDensityNetwork
from ape_jax.observers.dagger import Dagger
from ape_jax.observers.epsilon import Epsilon
from ape_jax.observers.escape import Escape
from ape_jax.observers.filtered import Filtered
from ape_jax.observers.frame_stack import FrameStack
from ape_jax.observers.from_observations import FromObservations
from ape_jax.observers.gail import Gail
from ape_jax.observers.implicit_q import ImplicitQ
from ape_jax.observers.iq_learn import InverseSoftQ
from ape_jax.observers.latent import LatentCloning, LatentMixture, TabularLatent
from ape_jax.observers.offline_q import OfflineQ
from ape_jax.observers.one_step import OneStep
from ape_jax.observers.posterior import Mixture, Posterior
from ape_jax.observers.recurrent import Recurrent
from ape_jax.observers.shortest_path import ShortestPath
from ape_jax.observers.time_to_end import TimeToEnd
from ape_jax.types import Policy, PRNGKey


@runtime_checkable
class Observer(Protocol):
    """Anything that makes a policy of demonstrations."""

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> Policy:
        """The policy that this observer deploys after it has seen the demonstrations."""
        ...


__all__ = [
    "AdvantageWeighted",
    "BehaviourCloning",
    "BestTemperature",
    "Candidates",
    "Dagger",
    "Epsilon",
    "Escape",
    "Filtered",
    "FrameStack",
    "FromObservations",
    "Gail",
    "ImplicitQ",
    "InverseSoftQ",
    "LatentCloning",
    "LatentMixture",
    "Limited",
    "MeanAction",
    "Mixture",
    "MixtureDensityNetwork",
    "Observer",
    "OfflineQ",
    "OneStep",
    "Posterior",
    "Recurrent",
    "ShortestPath",
    "TablePolicy",
    "TabularCloning",
    "TabularLatent",
    "TimeToEnd",
]
