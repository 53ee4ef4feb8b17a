"""Flax modules of one expert, one critic or one classifier."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

_ACTIVATIONS = {"tanh": nn.tanh, "relu": nn.relu}


class Table(nn.Module):
    """One row of outputs for each state of a finite observation space."""

    num_states: int
    """Rows (S)."""
    num_outputs: int
    """Numbers a row."""
    scale: float
    """Standard deviation at the start; heads that start alike stay alike."""

    @nn.compact
    def __call__(self, state: Int[Array, ""]) -> Float[Array, " outputs"]:
        """The state's row."""
        shape = (self.num_states, self.num_outputs)
        return self.param("table", nn.initializers.normal(self.scale), shape)[state]


class Normalize(nn.Module):
    """Observations in standard units of what was seen so far: see ``with_statistics``."""

    @nn.compact
    def __call__(self, observation: Shaped[Array, "..."]) -> Float[Array, "..."]:
        """Minus the mean, over the standard deviation, between −10 and 10."""
        means = self.variable("statistics", "mean", jnp.zeros, observation.shape)
        scales = self.variable("statistics", "scale", jnp.ones, observation.shape)
        mean, scale = jax.lax.stop_gradient((means.value, scales.value))
        return jnp.clip((observation - mean) * scale, -10.0, 10.0)


class MLP(nn.Module):
    """Hidden layers over a finite or a continuous observation space.

    A finite observation is one-hot, so the first layer is an embedding, drawn N(0, 1). No layer has
    biases then: a bias moves the outputs of every state at once, a direction in which all heads
    agree and that a policy gradient falls into before the heads have parted.
    """

    num_outputs: int
    """Width of the last layer."""
    hidden_sizes: tuple[int, ...]
    """Widths of the others."""
    activation: str
    """Nonlinearity between layers: ``tanh`` or ``relu``."""
    num_states: int | None
    """Size of a finite observation space; None for a continuous one."""
    scale: float
    """Of the orthogonal output layer at the start."""
    normalize: bool = False
    """Continuous observations, by their statistics."""

    @nn.compact
    def __call__(self, observation: Shaped[Array, "..."]) -> Float[Array, " outputs"]:
        """Outputs at one observation."""
        activation = _ACTIVATIONS[self.activation]
        first, *rest = self.hidden_sizes
        biases = self.num_states is None
        if self.num_states is None:
            inputs = jnp.ravel(observation).astype(jnp.float32)
            hidden = nn.Dense(first)(Normalize()(inputs) if self.normalize else inputs)
        else:
            embedding = nn.Embed(self.num_states, first, embedding_init=nn.initializers.normal(1.0))
            hidden = embedding(observation)
        hidden = activation(hidden)
        for width in rest:
            hidden = activation(nn.Dense(width, use_bias=biases)(hidden))
        initializer = nn.initializers.orthogonal(self.scale)
        return nn.Dense(self.num_outputs, use_bias=biases, kernel_init=initializer)(hidden)


class Conv(nn.Module):
    """One convolution of 3 x 3 over an image [H, W, C], and an MLP on what it finds."""

    num_outputs: int
    """Width of the last layer."""
    hidden_sizes: tuple[int, ...]
    """Widths of the dense layers before it."""
    activation: str
    """Nonlinearity between layers: ``tanh`` or ``relu``."""
    scale: float
    """Of the orthogonal output layer at the start."""
    num_channels: int = 16
    """Features of the convolution."""

    @nn.compact
    def __call__(self, observation: Shaped[Array, "..."]) -> Float[Array, " outputs"]:
        """Outputs at one image."""
        image = observation.astype(jnp.float32)
        height, width = image.shape[0] - 2, image.shape[1] - 2
        # As a product of matrices it stays one where every expert has a kernel of its own; XLA
        # makes of a convolution one by groups, which is slow.
        patches = [image[i : i + height, j : j + width] for i in range(3) for j in range(3)]
        found = nn.Dense(self.num_channels, name="kernel")(jnp.concatenate(patches, axis=-1))
        found = _ACTIVATIONS[self.activation](found)
        top = MLP(self.num_outputs, self.hidden_sizes, self.activation, None, self.scale)
        return top(found)


class GaussianHead(nn.Module):
    """Mean and log standard deviation of an action, in halves of the range of actions."""

    size: int
    """D."""
    body: nn.Module
    """Gives the means, or with ``spread_of_state`` means and log standard deviations."""
    spread_of_state: bool
    """Whether standard deviations depend on the observation."""

    @nn.compact
    def __call__(self, observation: Shaped[Array, "..."]) -> Float[Array, " outputs"]:
        """Means [D], then log standard deviations [D]."""
        outputs = jnp.asarray(self.body(observation))
        if not self.spread_of_state:
            log_std = self.param("log_std", nn.initializers.zeros, (self.size,))
            outputs = jnp.concatenate([outputs, log_std])
        means, log_stds = jnp.split(outputs, 2)
        # Between −5 and 1, and −0.5 at the start with a slope of one: a sharp bound has no gradient
        # beyond it, and a head that crosses it would never come back.
        return jnp.concatenate([means, -2.0 + 3.0 * jnp.tanh(log_stds / 2.25 + jnp.arctanh(0.5))])
