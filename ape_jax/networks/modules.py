"""Flax modules of one expert, one critic or one classifier."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from ape_jax.settings.names import ActivationName

_ACTIVATIONS = {"tanh": nn.tanh, "relu": nn.relu}


class Table(nn.Module):
    """One row of outputs for each state of a finite observation space.

    Without a state it gives all rows, and their gradient is no scatter.
    """

    num_states: int
    num_outputs: int
    scale: float
    """Standard deviation of the entries at the start. Heads that start alike would stay alike."""

    @nn.compact
    def __call__(self, state: Int[Array, ""] | None) -> Float[Array, "*S outputs"]:
        """The state's row; None gives the rows of all states."""
        shape = (self.num_states, self.num_outputs)
        table = self.param("table", nn.initializers.normal(self.scale), shape)
        return table if state is None else table[state]


class Normalize(nn.Module):
    """Observations in standard units; ``with_statistics`` sets their mean and scale."""

    @nn.compact
    def __call__(self, observation: Shaped[Array, "..."]) -> Float[Array, "..."]:
        """Subtract the mean, divide by the standard deviation, and clip to −10 … 10."""
        means = self.variable("statistics", "mean", jnp.zeros, observation.shape)
        scales = self.variable("statistics", "scale", jnp.ones, observation.shape)
        mean, scale = jax.lax.stop_gradient((means.value, scales.value))
        return jnp.clip((observation - mean) * scale, -10.0, 10.0)


class MLP(nn.Module):
    """Hidden layers over a finite or a continuous observation space.

    For finite observations the first layer is an embedding, drawn from N(0, 1), and no layer has
    biases. A bias moves the outputs of all states at once, and all heads alike: a policy gradient
    would follow that direction before the heads have become different.
    """

    num_outputs: int
    hidden_sizes: tuple[int, ...]
    activation: ActivationName
    num_states: int | None
    """Size of a finite observation space; None for a continuous one."""
    scale: float
    """Scale of the orthogonal output layer at the start."""
    normalize: bool = False
    """Whether continuous observations pass through ``Normalize``."""

    @nn.compact
    def __call__(self, observation: Shaped[Array, "..."] | None) -> Float[Array, "*S outputs"]:
        """Outputs at one observation; None gives those of all states."""
        activation = _ACTIVATIONS[self.activation]
        first, *rest = self.hidden_sizes
        biases = self.num_states is None
        if self.num_states is None:
            assert observation is not None
            inputs = jnp.ravel(observation).astype(jnp.float32)
            hidden = nn.Dense(first)(Normalize()(inputs) if self.normalize else inputs)
        else:
            embedding = nn.Embed(self.num_states, first, embedding_init=nn.initializers.normal(1.0))
            hidden = embedding.embedding if observation is None else embedding(observation)
        hidden = activation(hidden)
        for width in rest:
            hidden = activation(nn.Dense(width, use_bias=biases)(hidden))
        initializer = nn.initializers.orthogonal(self.scale)
        return nn.Dense(self.num_outputs, use_bias=biases, kernel_init=initializer)(hidden)


class Conv(nn.Module):
    """One convolution of 3 x 3 over an image [H, W, C], and an MLP on its features."""

    num_outputs: int
    hidden_sizes: tuple[int, ...]
    """Widths of the dense layers between the convolution and the last layer."""
    activation: ActivationName
    scale: float
    """Scale of the orthogonal output layer at the start."""
    num_channels: int = 16

    @nn.compact
    def __call__(self, observation: Shaped[Array, "..."]) -> Float[Array, " outputs"]:
        """Outputs at one image."""
        image = observation.astype(jnp.float32)
        height, width = image.shape[0] - 2, image.shape[1] - 2
        # Written as a product of matrices, because XLA turns a convolution with one kernel for each
        # expert into a slow grouped convolution.
        patches = [image[i : i + height, j : j + width] for i in range(3) for j in range(3)]
        features = nn.Dense(self.num_channels, name="kernel")(jnp.concatenate(patches, axis=-1))
        features = _ACTIVATIONS[self.activation](features)
        top = MLP(self.num_outputs, self.hidden_sizes, self.activation, None, self.scale)
        return top(features)


class GaussianHead(nn.Module):
    """Mean and log standard deviation of an action, in halves of the range of actions."""

    size: int
    """Dimensions of an action (D)."""
    body: nn.Module
    """Module of the means, or of means and log standard deviations with ``std_of_state``."""
    std_of_state: bool

    @nn.compact
    def __call__(self, observation: Shaped[Array, "..."]) -> Float[Array, " outputs"]:
        """Means [D], then log standard deviations [D]."""
        outputs = jnp.asarray(self.body(observation))
        if not self.std_of_state:
            log_std = self.param("log_std", nn.initializers.zeros, (self.size,))
            outputs = jnp.concatenate([outputs, log_std])
        means, log_stds = jnp.split(outputs, 2)
        # The log standard deviation lies between −5 and 1, and starts at −0.5 with a slope of one.
        # A sharp bound has no gradient beyond it: a head that crosses it could not return.
        return jnp.concatenate([means, -2.0 + 3.0 * jnp.tanh(log_stds / 2.25 + jnp.arctanh(0.5))])
