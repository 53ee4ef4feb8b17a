"""The deterministic clone of continuous actions: least squares, which averages modes."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Shaped

from ape_jax.demonstrations import Demonstrations
from ape_jax.networks import MLP
from ape_jax.observers import fitting
from ape_jax.types import Params, PRNGKey


@struct.dataclass
class MeanActionPolicy:
    """One action for each observation."""

    params: Params
    module: nn.Module = struct.field(pytree_node=False)

    def __call__(self, observation: Shaped[Array, "..."]) -> Float[Array, " D"]:
        """The action."""
        return jnp.asarray(self.module.apply(self.params, observation))


@dataclasses.dataclass(frozen=True)
class MeanAction:
    """Regression of actions [N, D] on observations, as in behaviour cloning by squared error.

    Its optimum is E[action|observation]: where experts pass an obstacle left and right, the middle.
    """

    hidden_sizes: tuple[int, ...] = (64, 64)
    num_updates: int = 2000
    batch_size: int = 1024
    learning_rate: float = 3e-3

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> MeanActionPolicy:
        """Minimise ½‖action − f(observation)‖²."""
        size = demonstrations.action.shape[-1]
        module = MLP(size, self.hidden_sizes, "tanh", num_states=None, scale=0.01)

        def loss(params, observation, action):
            return 0.5 * jnp.sum(jnp.square(module.apply(params, observation) - action))

        params = fitting.fit_samples(
            key,
            module.init,
            loss,
            demonstrations,
            self.num_updates,
            self.batch_size,
            self.learning_rate,
        )
        return MeanActionPolicy(params, module)
