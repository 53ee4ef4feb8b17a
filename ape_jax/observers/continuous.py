"""Clones of continuous actions: least squares, and a mixture density network."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Shaped

from ape_jax.core.distributions import Gaussian, GaussianMixture, point
from ape_jax.core.policies import MemorylessPolicy
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.networks import MLP
from ape_jax.observers.fitting import Training
from ape_jax.types import Params, PRNGKey


@struct.dataclass
class MeanActionPolicy(MemorylessPolicy):
    """One action for each observation."""

    params: Params
    centre: Float[Array, "..."]
    """Mean of the demonstrated actions, [D]."""
    unit: Float[Array, "..."]
    """Their standard deviation, [D]."""
    module: nn.Module = struct.field(pytree_node=False)
    """The network: an observation to a standardised action."""

    def distribution(self, observation: Shaped[Array, "..."]) -> Gaussian:
        """The distribution that always gives this action."""
        outputs = jnp.asarray(self.module.apply(self.params, observation))
        return point(self.centre + self.unit * outputs)


@dataclasses.dataclass(frozen=True)
class MeanAction(Training):
    """Regression of actions [N, D] on observations: behaviour cloning by squared error.

    Its optimum is E[action|observation]. Where some experts pass an obstacle on the left and others
    on the right, it goes through the middle.
    """

    hidden_sizes: tuple[int, ...] = (64, 64)

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> MeanActionPolicy:
        """Minimise ½‖action − f(observation)‖², each dimension in its standard deviations."""
        size = demonstrations.action.shape[-1]
        module = MLP(size, self.hidden_sizes, "tanh", None, scale=0.01, normalize=True)
        centre = jnp.mean(demonstrations.action, axis=0)
        unit = jnp.std(demonstrations.action, axis=0) + 1e-6

        def loss(params, observation, action):
            error = jnp.asarray(module.apply(params, observation)) - (action - centre) / unit
            return 0.5 * jnp.sum(jnp.square(error))

        params = self.fit_samples(jax.random.split(key, 3), module.init, loss, demonstrations)
        return MeanActionPolicy(params, centre, unit, module)


@struct.dataclass
class MixtureDensityPolicy(MemorylessPolicy):
    """A mixture of M Gaussians for each observation."""

    params: Params
    """Parameters of the network, and what its outputs are added to: centres [M, D] and log
    standard deviations [M, D]."""
    module: nn.Module = struct.field(pytree_node=False)
    """The network: an observation to weights, means and log standard deviations."""

    def distribution(self, observation: Shaped[Array, "..."]) -> GaussianMixture:
        """The mixture at one observation."""
        network, centres, log_stds = self.params
        outputs = jnp.asarray(self.module.apply(network, observation))
        logits, rest = outputs[: len(centres)], outputs[len(centres) :]
        means, more_log_stds = rest.reshape(2, *centres.shape)
        log_stds = jnp.clip(log_stds + more_log_stds, -5.0, 2.0)
        return GaussianMixture(jax.nn.log_softmax(logits), centres + means, log_stds)


@dataclasses.dataclass(frozen=True)
class MixtureDensityNetwork(Training):
    """Maximum likelihood of actions [N, D] under a mixture of Gaussians (Bishop, 1994).

    It keeps the modes of the actions. With one component it is the Gaussian clone with their mean
    and variance.
    """

    num_components: int = 4
    """Gaussians in the mixture (M)."""
    hidden_sizes: tuple[int, ...] = (64, 64)

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> MixtureDensityPolicy:
        """Minimise −log density of the actions."""
        actions = demonstrations.action
        num_outputs = self.num_components * (1 + 2 * actions.shape[-1])
        module = MLP(num_outputs, self.hidden_sizes, "tanh", num_states=None, scale=0.01)

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
            return -MixtureDensityPolicy(params, module).distribution(observation).log_prob(action)

        params = self.fit_samples(jax.random.split(key, 3), init, loss, demonstrations)
        return MixtureDensityPolicy(params, module)
