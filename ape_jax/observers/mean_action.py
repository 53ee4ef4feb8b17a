"""The deterministic clone of continuous actions: least squares, which averages modes."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Shaped

from ape_jax.core.distributions import Gaussian, point
from ape_jax.core.policies import MemorylessPolicy
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.networks import MLP
from ape_jax.observers import fitting
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
class MeanAction:
    """Regression of actions [N, D] on observations: behaviour cloning by squared error.

    Its optimum is E[action|observation]. Where some experts pass an obstacle on the left and others
    on the right, it goes through the middle.
    """

    hidden_sizes: tuple[int, ...] = (64, 64)
    num_updates: int = 2000
    batch_size: int = 1024
    """Demonstration steps of an update."""
    learning_rate: float = 3e-3
    """Adam step at the start; it falls along a half cosine to zero."""

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> MeanActionPolicy:
        """Minimise ½‖action − f(observation)‖², each dimension in its standard deviations."""
        size = demonstrations.action.shape[-1]
        module = MLP(size, self.hidden_sizes, "tanh", None, scale=0.01, normalize=True)
        centre = jnp.mean(demonstrations.action, axis=0)
        unit = jnp.std(demonstrations.action, axis=0) + 1e-6

        def loss(params, observation, action):
            error = jnp.asarray(module.apply(params, observation)) - (action - centre) / unit
            return 0.5 * jnp.sum(jnp.square(error))

        params = fitting.fit_samples(
            jax.random.split(key, 3),
            module.init,
            loss,
            demonstrations,
            self.num_updates,
            self.batch_size,
            self.learning_rate,
        )
        return MeanActionPolicy(params, centre, unit, module)
