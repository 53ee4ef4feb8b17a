"""The clone of continuous actions that keeps their modes: a mixture density network."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Shaped

from ape_jax.core import distributions
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.networks import MLP
from ape_jax.observers import fitting
from ape_jax.types import Params, PRNGKey


@struct.dataclass
class GaussianMixturePolicy:
    """A mixture of Gaussians for each observation."""

    params: Params
    """Of the network, and what it adds to: centres [M, D] and log standard deviations [M, D]."""
    module: nn.Module = struct.field(pytree_node=False)
    """The network: an observation to weights, means and spreads."""
    num_components: int = struct.field(pytree_node=False)
    """Gaussians in the mixture."""

    def __call__(self, observation: Shaped[Array, "..."]) -> distributions.GaussianMixture:
        """The distribution of the action."""
        network, centres, log_stds = self.params
        outputs = jnp.asarray(self.module.apply(network, observation))
        logits, rest = outputs[: self.num_components], outputs[self.num_components :]
        means, more_log_stds = rest.reshape(2, *centres.shape)
        log_stds = jnp.clip(log_stds + more_log_stds, -5.0, 2.0)
        return distributions.GaussianMixture(jax.nn.log_softmax(logits), centres + means, log_stds)


@dataclasses.dataclass(frozen=True)
class GaussianMixture:
    """Maximum likelihood of actions [N, D] under a mixture of Gaussians (Bishop, 1994).

    One component is the moment-matched Gaussian clone.
    """

    num_components: int = 4
    """Gaussians in the mixture."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers."""
    num_updates: int = 2000
    """Steps of the optimiser."""
    batch_size: int = 1024
    """Demonstration steps in each of them."""
    learning_rate: float = 3e-3
    """Adam step."""

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> GaussianMixturePolicy:
        """Minimise −log density of the actions."""
        size = demonstrations.action.shape[-1]
        num_outputs = self.num_components * (1 + 2 * size)
        module = MLP(num_outputs, self.hidden_sizes, "tanh", num_states=None, scale=0.01)
        actions = demonstrations.action

        def init(key, observation):
            # Each component starts at an action that was shown, far from those of the others, and
            # narrow: components that start alike stay at the mean of all modes for long.
            key_rows, key_network = jax.random.split(key)
            seen = actions[jax.random.randint(key_rows, (256,), 0, len(actions))]
            centres = seen[:1]
            for _ in range(self.num_components - 1):
                apart = jnp.linalg.norm(seen[:, None] - centres[None], axis=-1)
                farthest = jnp.argmax(jnp.min(apart, axis=1))
                centres = jnp.concatenate([centres, seen[farthest][None]])
            log_stds = jnp.log(0.5 * jnp.std(seen, axis=0) + 1e-3)
            log_stds = jnp.tile(log_stds, (self.num_components, 1))
            return module.init(key_network, observation), centres, log_stds

        def loss(params, observation, action):
            policy = GaussianMixturePolicy(params, module, self.num_components)
            return -policy(observation).log_prob(action)

        params = fitting.fit_samples(
            key,
            init,
            loss,
            demonstrations,
            self.num_updates,
            self.batch_size,
            self.learning_rate,
        )
        return GaussianMixturePolicy(params, module, self.num_components)
