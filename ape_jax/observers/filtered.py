"""Cloning of the better episodes alone, and of the better actions."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from ape_jax.demonstrations import episodes
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.observers.fitting import Cloner
from ape_jax.types import Policy, PRNGKey


@dataclasses.dataclass(frozen=True)
class Filtered:
    """Behaviour cloning of the episodes with the highest returns.

    Episodes with the same return are kept or left together. So all are kept where all returns are
    the same, and it is then plain cloning. Episodes without a marked end do not count, unless
    there is no other.
    """

    cloning: Cloner
    """The observer that clones what is left."""
    share: float = 0.25
    """Share of the episodes that is kept."""

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> Policy:
        """Weigh the steps of better episodes by one, and all others by zero."""
        return self.cloning.fit_weighted(key, demonstrations, self.weights(demonstrations))

    def weights(self, demonstrations: Demonstrations) -> Float[Array, " N"]:
        """One for the steps of the better episodes, and zero for the others."""
        returns = episodes.episode_returns(demonstrations)
        complete = episodes.complete(demonstrations)
        counts = complete | ~jnp.any(complete)
        first = episodes.begins(demonstrations) & counts
        threshold = jnp.nanquantile(
            jnp.where(first, returns, jnp.nan), 1.0 - self.share, method="higher"
        )
        return (counts & (returns >= threshold)).astype(jnp.float32)
