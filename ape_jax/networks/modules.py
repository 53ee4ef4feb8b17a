"""Flax modules of one expert, one critic or one classifier."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from ape_jax.core import platform
from ape_jax.settings.names import ActivationName

_ACTIVATIONS = {"tanh": nn.tanh, "relu": nn.relu}


@jax.custom_vjp
def product(
    inputs: Float[Array, "*batch inputs"], kernel: Float[Array, "inputs outputs"]
) -> Float[Array, "*batch outputs"]:
    """Inputs times a kernel, with a gradient that is fast on a CPU.

    XLA's fast products on a CPU read the left matrix row by row. The kernel's gradient
    inputsᵀ · changes reads it column by column, unless the transpose is first put in memory.

    It has no forward-mode derivative. For that, trace with ``row_by_row=False`` in the
    ``core.platform.Forms``, with which layers do not use it.
    """
    return inputs @ kernel


def _forward(inputs, kernel):
    return inputs @ kernel, (inputs, kernel)


def _backward(saved, changes):
    inputs, kernel = saved
    left, right = (x.reshape(-1, x.shape[-1]) for x in (inputs, changes))
    if left.shape[1] <= right.shape[1]:
        of_kernel = jax.lax.optimization_barrier(left.T) @ right
    else:  # The narrower matrix is the cheaper one to transpose.
        of_kernel = jax.lax.optimization_barrier(jax.lax.optimization_barrier(right.T) @ left).T
    return changes @ kernel.T, of_kernel


product.defvjp(_forward, _backward)


class Dense(nn.Module):
    """A linear layer."""

    num_outputs: int
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, inputs: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        """Inputs times the kernel, plus the bias."""
        kernel = self.param("kernel", self.kernel_init, (inputs.shape[-1], self.num_outputs))
        by_rows = inputs.ndim > 1 and platform.forms().row_by_row
        outputs = product(inputs, kernel) if by_rows else inputs @ kernel
        if not self.use_bias:
            return outputs
        bias = self.param("bias", nn.initializers.zeros, (self.num_outputs,))
        return outputs + jnp.broadcast_to(bias, outputs.shape)


class Table(nn.Module):
    """One row of outputs for each state of a finite observation space.

    Without a state it gives all rows, and their gradient is no scatter.
    """

    num_states: int
    num_outputs: int
    scale: float
    """Standard deviation of the entries at the start. Heads that start alike would stay alike."""

    @nn.compact
    def __call__(self, state: Int[Array, "*batch"] | None) -> Float[Array, "*batch outputs"]:
        """The state's row; None gives the rows of all states."""
        shape = (self.num_states, self.num_outputs)
        table = self.param("table", nn.initializers.normal(self.scale), shape)
        return table if state is None else table[state]


class Normalize(nn.Module):
    """Observations in standard units; ``with_statistics`` sets their mean and scale."""

    @nn.compact
    def __call__(self, observation: Float[Array, "*batch F"]) -> Float[Array, "*batch F"]:
        """Subtract the mean, divide by the standard deviation, and clip to −10 … 10."""
        means = self.variable("statistics", "mean", jnp.zeros, observation.shape[-1:])
        scales = self.variable("statistics", "scale", jnp.ones, observation.shape[-1:])
        mean, scale = (
            jnp.broadcast_to(jax.lax.stop_gradient(x.value), observation.shape)
            for x in (means, scales)
        )
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
    num_axes: int = 1
    """Axes of one continuous observation."""

    @nn.compact
    def __call__(self, observation: Shaped[Array, "..."] | None) -> Float[Array, "*batch outputs"]:
        """Outputs at one observation, or at each of a batch; None gives those of all states."""
        activation = _ACTIVATIONS[self.activation]
        first, *rest = self.hidden_sizes
        biases = self.num_states is None
        if self.num_states is None:
            assert observation is not None
            batch = observation.shape[: observation.ndim - self.num_axes]
            inputs = observation.reshape(*batch, -1).astype(jnp.float32)
            hidden = Dense(first)(Normalize()(inputs) if self.normalize else inputs)
        else:
            embedding = nn.Embed(self.num_states, first, embedding_init=nn.initializers.normal(1.0))
            hidden = embedding.embedding if observation is None else embedding(observation)
        hidden = activation(hidden)
        for width in rest:
            hidden = activation(Dense(width, biases)(hidden))
        initializer = nn.initializers.orthogonal(self.scale)
        return Dense(self.num_outputs, biases, initializer)(hidden)


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
    def __call__(
        self, observation: Shaped[Array, "*batch H W C"]
    ) -> Float[Array, "*batch outputs"]:
        """Outputs at one image, or at each of a batch."""
        image = observation.astype(jnp.float32)
        height, width = image.shape[-3] - 2, image.shape[-2] - 2
        # Written as a product of matrices, because XLA turns a convolution with one kernel for each
        # expert into a slow grouped convolution.
        patches = [image[..., i : i + height, j : j + width, :] for i in range(3) for j in range(3)]
        features = Dense(self.num_channels, name="kernel")(jnp.concatenate(patches, axis=-1))
        features = _ACTIVATIONS[self.activation](features)
        shape = (self.num_outputs, self.hidden_sizes, self.activation)
        return MLP(*shape, None, self.scale, num_axes=3)(features)


class GaussianHead(nn.Module):
    """Mean and log standard deviation of an action, in halves of the range of actions."""

    size: int
    """Dimensions of an action (D)."""
    body: nn.Module
    """Module of the means, or of means and log standard deviations with ``std_of_state``."""
    std_of_state: bool

    @nn.compact
    def __call__(self, observation: Shaped[Array, "..."]) -> Float[Array, "*batch outputs"]:
        """Means [D], then log standard deviations [D]."""
        outputs = jnp.asarray(self.body(observation))
        if not self.std_of_state:
            log_std = self.param("log_std", nn.initializers.zeros, (self.size,))
            log_std = jnp.broadcast_to(log_std, outputs.shape)
            outputs = jnp.concatenate([outputs, log_std], axis=-1)
        means, log_stds = jnp.split(outputs, 2, axis=-1)
        # The log standard deviation lies between −5 and 1, and starts at −0.5 with a slope of one.
        # A sharp bound has no gradient beyond it: a head that crosses it could not return.
        log_stds = -2.0 + 3.0 * jnp.tanh(log_stds / 2.25 + jnp.arctanh(0.5))
        return jnp.concatenate([means, log_stds], axis=-1)
