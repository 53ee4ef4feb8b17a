"""The clone of continuous actions that keeps their modes: a mixture density network."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Shaped

from ape_jax.core.distributions import GaussianMixture
from ape_jax.core.policies import MemorylessPolicy
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.networks import MLP
from ape_jax.observers import fitting
from ape_jax.types import Params, PRNGKey


@struct.dataclass
class MixtureDensityPolicy(MemorylessPolicy):
    """A mixture of Gaussians for each observation."""

    params: Params
    """Parameters of the network, and what its outputs are added to: centres [M, D] and log
    standard deviations [M, D]."""
    module: nn.Module = struct.field(pytree_node=False)
    """The network: an observation to weights, means and log standard deviations."""
    num_components: int = struct.field(pytree_node=False)
    """Gaussians in the mixture (M)."""

    def distribution(self, observation: Shaped[Array, "..."]) -> GaussianMixture:
        """The mixture at one observation."""
        network, centres, log_stds = self.params
        outputs = jnp.asarray(self.module.apply(network, observation))
        logits, rest = outputs[: self.num_components], outputs[self.num_components :]
        means, more_log_stds = rest.reshape(2, *centres.shape)
        log_stds = jnp.clip(log_stds + more_log_stds, -5.0, 2.0)
        return GaussianMixture(jax.nn.log_softmax(logits), centres + means, log_stds)


@dataclasses.dataclass(frozen=True)
class MixtureDensityNetwork:
    """Maximum likelihood of actions [N, D] under a mixture of Gaussians (Bishop, 1994).

    With one component it is the Gaussian clone with the mean and the variance of the actions.
    """

    num_components: int = 4
    """Gaussians in the mixture (M)."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    num_updates: int = 2000
    batch_size: int = 1024
    """Demonstration steps of an update."""
    learning_rate: float = 3e-3
    """Adam step at the start; it falls along a half cosine to zero."""

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> MixtureDensityPolicy:
        """Minimise −log density of the actions."""
        size = demonstrations.action.shape[-1]
        num_outputs = self.num_components * (1 + 2 * size)
        module = MLP(num_outputs, self.hidden_sizes, "tanh", num_states=None, scale=0.01)
        actions = demonstrations.action

        def init(key, observation):
            # Each component starts narrow, at a demonstrated action far from the other components.
            # Components that start alike stay at the mean of all modes for long.
            key_rows, key_network = jax.random.split(key)
            drawn = actions[jax.random.randint(key_rows, (256,), 0, len(actions))]
            centres = drawn[:1]
            for _ in range(self.num_components - 1):
                distances = jnp.linalg.norm(drawn[:, None] - centres[None], axis=-1)
                farthest = jnp.argmax(jnp.min(distances, axis=1))
                centres = jnp.concatenate([centres, drawn[farthest][None]])
            log_stds = jnp.log(0.5 * jnp.std(drawn, axis=0) + 1e-3)
            log_stds = jnp.tile(log_stds, (self.num_components, 1))
            return module.init(key_network, observation), centres, log_stds

        def loss(params, observation, action):
            policy = MixtureDensityPolicy(params, module, self.num_components)
            return -policy.distribution(observation).log_prob(action)

        params = fitting.fit_samples(
            jax.random.split(key, 3),
            init,
            loss,
            demonstrations,
            self.num_updates,
            self.batch_size,
            self.learning_rate,
        )
        return MixtureDensityPolicy(params, module, self.num_components)
