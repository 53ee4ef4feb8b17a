"""The paper's π_o: the uniform mixture of the experts, known exactly instead of cloned."""

import dataclasses

from flax import struct
from jaxtyping import Array, Float, Shaped

from ape_jax.core import mixture
from ape_jax.core.distributions import Gaussian, GaussianMixture
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.networks import Networks
from ape_jax.types import Params, PRNGKey


@struct.dataclass
class MixturePolicy:
    """log π_o(·|observation) of heads [E, …] in equal shares."""

    heads: Params
    """Parameters of the experts, stacked."""
    networks: Networks = struct.field(pytree_node=False)
    """Their modules."""

    def __call__(self, observation: Shaped[Array, "..."]) -> Float[Array, " A"] | GaussianMixture:
        """Log-probabilities at one observation, or the mixture of Gaussians."""
        log_weights = mixture.uniform_log_weights(self.networks.num_experts)
        return mixed(self.networks, self.heads, observation, log_weights)


def mixed(
    networks: Networks, heads: Params, observation: Shaped[Array, "..."], log_weights
) -> Float[Array, " A"] | GaussianMixture:
    """What all of heads [E, …] do at an observation, each by its weight."""
    if networks.action_bounds is None:
        return mixture.mixture_log_probs(networks.expert_log_probs(heads, observation), log_weights)
    experts = networks.policies(heads, observation)
    assert isinstance(experts, Gaussian)
    return GaussianMixture(log_weights, experts.mean, experts.log_std)


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A yardstick, not an attacker: it looks inside the ensemble and at no demonstration.

    It overstates protection. Real demonstrations show each expert where that expert goes, so a
    cloner weighs the experts by p(c|s), not evenly.
    """

    networks: Networks
    """The experts' modules."""
    heads: Params
    """Their parameters, stacked."""

    def fit(self, key: PRNGKey, demonstrations: Demonstrations | None) -> MixturePolicy:
        """The mixture, whatever the demonstrations."""
        del key, demonstrations
        return MixturePolicy(self.heads, self.networks)
