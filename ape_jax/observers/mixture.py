"""The paper's π_o: the uniform mixture of the experts, known exactly instead of cloned."""

import dataclasses

from flax import struct
from jaxtyping import Array, Float, Shaped

from ape_jax.core import mixture
from ape_jax.demonstrations import Demonstrations
from ape_jax.networks import Networks
from ape_jax.types import Params, PRNGKey


@struct.dataclass
class MixturePolicy:
    """log π_o(·|observation) of heads [E, …] in equal shares."""

    heads: Params
    networks: Networks = struct.field(pytree_node=False)

    def __call__(self, observation: Shaped[Array, "..."]) -> Float[Array, " A"]:
        """Log-probabilities at one observation."""
        log_weights = mixture.uniform_log_weights(self.networks.num_experts)
        return mixture.mixture_log_probs(
            self.networks.expert_log_probs(self.heads, observation), log_weights
        )


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A yardstick, not an attacker: it looks inside the ensemble and at no demonstration.

    It overstates protection. Real demonstrations show each expert where that expert goes, so a
    cloner weighs the experts by p(c|s), not evenly.
    """

    networks: Networks
    heads: Params

    def fit(self, key: PRNGKey, demonstrations: Demonstrations | None) -> MixturePolicy:
        """The mixture, whatever the demonstrations."""
        del key, demonstrations
        return MixturePolicy(self.heads, self.networks)
