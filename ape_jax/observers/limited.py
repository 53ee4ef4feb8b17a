"""An observer with little to go by: few demonstrations, or a small network."""

import dataclasses

import jax

from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.observers.behaviour_cloning import BehaviourCloning
from ape_jax.observers.policies import GaussianPolicy, HeadPolicy
from ape_jax.types import PRNGKey


@dataclasses.dataclass(frozen=True)
class Limited:
    """Behaviour cloning of the first steps only, by a network that may be small."""

    cloning: BehaviourCloning
    """How it clones what it saw."""
    num_steps: int
    """Demonstration steps that it gets to see; all, if there are fewer."""

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> HeadPolicy | GaussianPolicy:
        """Clone what it gets to see."""
        seen = jax.tree.map(lambda x: x[: self.num_steps], demonstrations)
        return self.cloning.fit(key, seen)
