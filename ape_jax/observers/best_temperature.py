"""A clone at the temperature that suits it best."""

import dataclasses

from ape_jax.core.policies import Tempered
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.observers.candidates import Candidates, likeliest, stack
from ape_jax.observers.fitting import Cloner
from ape_jax.types import PRNGKey

TEMPERATURES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.85, 1.0)


@dataclasses.dataclass(frozen=True)
class BestTemperature:
    """Behaviour cloning, deployed as π^(1/T) at one of ``TEMPERATURES``."""

    cloning: Cloner
    """The observer whose clone it deploys."""

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> Candidates:
        """Clone, and offer the clone at every temperature."""
        clone = self.cloning.fit(key, demonstrations)
        tempered = [Tempered(clone, temperature) for temperature in TEMPERATURES]
        return likeliest(stack(tempered), demonstrations)
