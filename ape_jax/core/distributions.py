"""What a policy is at one observation: the two families, with the same few operations.

Both are pytrees of arrays without batch axes; callers add those by ``jax.vmap``. What an observer
makes of several experts is ``pool``, of one family: the mixture of categoricals (paper, Eq. 1), and
the Gaussian with the mixture's mean and variance.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ape_jax.core import categorical, mixture
from ape_jax.core.mixture import LOG_FLOOR


class Categorical(NamedTuple):
    """Over discrete actions."""

    log_probs: Float[Array, "*E A"]
    """Normalised."""

    def log_prob(self, action: Int[Array, ""]) -> Float[Array, ""]:
        """Of one action."""
        return self.log_probs[action]

    def entropy(self) -> Float[Array, ""]:
        """In nats."""
        return categorical.entropy(self.log_probs)

    def sample(self, uniforms: Float[Array, " U"]) -> Int[Array, ""]:
        """An action, from the first of some numbers in [0, 1)."""
        return categorical.sample(categorical.cumulative_probs(self.log_probs), uniforms[0])

    def temper(self, temperature: Float[Array, ""] | float) -> "Categorical":
        """π^(1/T), normalised."""
        return Categorical(mixture.temper(self.log_probs, temperature))

    def pool(self, log_weights: Float[Array, " E"]) -> "Categorical":
        """Of experts [E]: their mixture."""
        return Categorical(mixture.mixture_log_probs(self.log_probs, log_weights))


class Gaussian(NamedTuple):
    """Over continuous actions, each dimension for itself."""

    mean: Float[Array, "*E D"]
    """Of every dimension."""
    log_std: Float[Array, "*E D"]
    """Logarithm of every dimension's standard deviation."""

    def log_prob(self, action: Float[Array, " D"]) -> Float[Array, ""]:
        """Log density of one action, in nats."""
        errors = (action - self.mean) * jnp.exp(-self.log_std)
        terms = -0.5 * jnp.square(errors) - self.log_std - 0.5 * jnp.log(2.0 * jnp.pi)
        return jnp.sum(terms)

    def entropy(self) -> Float[Array, ""]:
        """Differential entropy, in nats."""
        return jnp.sum(self.log_std + 0.5 * jnp.log(2.0 * jnp.pi * jnp.e))

    def sample(self, uniforms: Float[Array, " U"]) -> Float[Array, " D"]:
        """An action, from numbers in [0, 1), one for each of its dimensions."""
        return self.mean + jnp.exp(self.log_std) * normals(uniforms[: self.mean.shape[-1]])

    def temper(self, temperature: Float[Array, ""] | float) -> "Gaussian":
        """π^(1/T), normalised: variance times T. At zero, the mean action."""
        log_temperature = jnp.log(jnp.maximum(temperature, 1e-12))
        return Gaussian(self.mean, self.log_std + 0.5 * log_temperature)

    def pool(self, log_weights: Float[Array, " E"]) -> "Gaussian":
        """Of experts [E]: the Gaussian with mean and variance of their mixture.

        It is what maximum likelihood makes of pooled demonstrations with one Gaussian, and its mean
        what least squares makes of them.
        """
        weights = jnp.exp(log_weights)[:, None]
        mean = jnp.sum(weights * self.mean, axis=0)
        spread = jnp.exp(2.0 * self.log_std) + jnp.square(self.mean - mean[None])
        return Gaussian(mean, 0.5 * jnp.log(jnp.sum(weights * spread, axis=0)))


Distribution = Categorical | Gaussian
"""Of one action, discrete or continuous."""


class GaussianMixture(NamedTuple):
    """Diagonal Gaussians over actions, of which one is drawn by weight."""

    log_weights: Float[Array, " M"]
    """Normalised."""
    means: Float[Array, "M D"]
    """Of every Gaussian."""
    log_stds: Float[Array, "M D"]
    """Logarithms of their standard deviations."""

    def log_prob(self, action: Float[Array, " D"]) -> Float[Array, ""]:
        """Log density, in nats: log Σ_m w_m N(action; μ_m, σ_m²)."""
        terms = jax.vmap(Gaussian.log_prob, (0, None))(Gaussian(self.means, self.log_stds), action)
        return jax.nn.logsumexp(self.log_weights + terms)

    def sample(self, uniforms: Float[Array, " U"]) -> Float[Array, " D"]:
        """An action, from numbers in [0, 1): one a dimension, and one for the component."""
        size = self.means.shape[-1]
        cumulative = categorical.cumulative_probs(self.log_weights)
        component = categorical.sample(cumulative, uniforms[size])
        return Gaussian(self.means[component], self.log_stds[component]).sample(uniforms)

    def temper(self, temperature: Float[Array, ""] | float) -> "GaussianMixture":
        """Weights and every component tempered; at zero the centre of the heaviest component."""
        log_temperature = jnp.log(jnp.maximum(temperature, 1e-12))
        log_weights = mixture.temper(self.log_weights, temperature)
        return GaussianMixture(log_weights, self.means, self.log_stds + 0.5 * log_temperature)


def point(action: Float[Array, " D"]) -> Gaussian:
    """Always the same action."""
    return Gaussian(action, jnp.full_like(action, LOG_FLOOR))


def normals(uniforms: Float[Array, "..."]) -> Float[Array, "..."]:
    """Standard normal numbers by inversion of uniform ones, multiples of 2^-24 in [0, 1)."""
    return jnp.sqrt(2.0) * jax.scipy.special.erfinv(2.0 * uniforms - 1.0 + 2.0**-24)
