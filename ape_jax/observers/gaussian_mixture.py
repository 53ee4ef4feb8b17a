"""The clone of continuous actions that keeps their modes: a mixture density network."""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Shaped

from ape_jax.demonstrations import Demonstrations
from ape_jax.networks import MLP
from ape_jax.observers import fitting
from ape_jax.types import Params, PRNGKey


class Gaussians(NamedTuple):
    """A mixture of diagonal Gaussians over actions."""

    log_weights: Float[Array, " M"]
    means: Float[Array, "M D"]
    log_stds: Float[Array, "M D"]

    def log_density(self, action: Float[Array, " D"]) -> Float[Array, ""]:
        """In nats: log Σ_m w_m N(action; μ_m, σ_m²)."""
        errors = (action[None] - self.means) * jnp.exp(-self.log_stds)
        terms = -0.5 * jnp.square(errors) - self.log_stds - 0.5 * jnp.log(2.0 * jnp.pi)
        return jax.nn.logsumexp(self.log_weights + jnp.sum(terms, axis=-1))


@struct.dataclass
class GaussianMixturePolicy:
    """A mixture of Gaussians for each observation."""

    params: Params
    module: nn.Module = struct.field(pytree_node=False)
    num_components: int = struct.field(pytree_node=False)

    def __call__(self, observation: Shaped[Array, "..."]) -> Gaussians:
        """The distribution of the action."""
        outputs = jnp.asarray(self.module.apply(self.params, observation))
        logits, rest = outputs[: self.num_components], outputs[self.num_components :]
        means, log_stds = rest.reshape(2, self.num_components, -1)
        return Gaussians(jax.nn.log_softmax(logits), means, jnp.clip(log_stds, -5.0, 2.0))

    def sample(self, key: PRNGKey, observation: Shaped[Array, "..."]) -> Float[Array, " D"]:
        """Deployed by sampling."""
        gaussians = self(observation)
        key_component, key_noise = jax.random.split(key)
        component = jax.random.categorical(key_component, gaussians.log_weights)
        noise = jax.random.normal(key_noise, gaussians.means[0].shape)
        return gaussians.means[component] + noise * jnp.exp(gaussians.log_stds[component])

    def greedy(self, observation: Shaped[Array, "..."]) -> Float[Array, " D"]:
        """Deployed greedily: the centre of the component with the greatest weight."""
        gaussians = self(observation)
        return gaussians.means[jnp.argmax(gaussians.log_weights)]


@dataclasses.dataclass(frozen=True)
class GaussianMixture:
    """Maximum likelihood of actions [N, D] under a mixture of Gaussians (Bishop, 1994).

    One component is the moment-matched Gaussian clone.
    """

    num_components: int = 4
    hidden_sizes: tuple[int, ...] = (64, 64)
    num_updates: int = 2000
    batch_size: int = 1024
    learning_rate: float = 3e-3

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> GaussianMixturePolicy:
        """Minimise −log density of the actions."""
        size = demonstrations.action.shape[-1]
        num_outputs = self.num_components * (1 + 2 * size)
        module = MLP(num_outputs, self.hidden_sizes, "tanh", num_states=None, scale=1.0)

        def loss(params, observation, action):
            policy = GaussianMixturePolicy(params, module, self.num_components)
            return -policy(observation).log_density(action)

        params = fitting.fit_samples(
            key,
            module,
            loss,
            demonstrations,
            self.num_updates,
            self.batch_size,
            self.learning_rate,
        )
        return GaussianMixturePolicy(params, module, self.num_components)
