"""Distributions of one action: categorical, Gaussian, and a mixture of Gaussians.

All are pytrees of arrays without batch axes; callers add those by ``jax.vmap``. An observer
combines the distributions of several experts [E] in one of two ways. ``mix`` is their mixture
(paper, Eq. 1). ``pool`` stays in the family: it is the mixture for discrete actions, and for
continuous ones the Gaussian with the mean and the variance of the mixture.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ape_jax.core import mixture
from ape_jax.core.mixture import LOG_FLOOR


class Categorical(NamedTuple):
    """A distribution of discrete actions, by their normalised log-probabilities."""

    log_probs: Float[Array, "*batch A"]

    def log_prob(self, action: Int[Array, ""]) -> Float[Array, "*batch"]:
        """Log-probability of one action."""
        # A sum over all actions, because the gradient of a look-up is a scatter, which a TPU runs
        # one element after another.
        taken = jnp.arange(self.log_probs.shape[-1]) == action
        return jnp.sum(jnp.where(taken, self.log_probs, 0.0), axis=-1)

    def entropy(self) -> Float[Array, ""]:
        """The entropy −Σ_a π(a) log π(a), in nats."""
        terms = jnp.exp(self.log_probs) * jnp.maximum(self.log_probs, LOG_FLOOR)
        return -jnp.sum(terms)

    def for_sampling(self) -> "CumulativeCategorical":
        """The same distribution in the form that ``sample`` needs, to be computed once."""
        return CumulativeCategorical(jnp.cumsum(jnp.exp(self.log_probs), axis=-1))

    def sample(self, uniforms: Float[Array, " U"]) -> Int[Array, ""]:
        """Draw an action; see ``CumulativeCategorical.sample``."""
        return self.for_sampling().sample(uniforms)

    def temper(self, temperature: Float[Array, ""] | float) -> "Categorical":
        """The distribution π^(1/T), normalised; at zero the most probable actions, evenly."""
        return Categorical(mixture.temper(self.log_probs, temperature))

    def mix(self, log_weights: Float[Array, " E"]) -> "Categorical":
        """The mixture of experts [E] with these log-weights."""
        return Categorical(mixture.mixture_log_probs(self.log_probs, log_weights))

    def pool(self, log_weights: Float[Array, " E"]) -> "Categorical":
        """The mixture, which is of the same family."""
        return self.mix(log_weights)


class CumulativeCategorical(NamedTuple):
    """A categorical distribution in the form that sampling needs: P(action ≤ a)."""

    cumulative: Float[Array, "*batch A"]

    def sample(self, uniforms: Float[Array, " U"]) -> Int[Array, ""]:
        """Draw an action in [0, A) from the first of some numbers in [0, 1), by inversion.

        This takes one uniform number instead of the A Gumbel numbers of ``jax.random.categorical``.
        Scaling by the last entry keeps the draw in range when the sum is not quite one.
        """
        threshold = uniforms[0] * self.cumulative[-1]
        return jnp.sum(self.cumulative[:-1] <= threshold, dtype=jnp.int32)


class Gaussian(NamedTuple):
    """A distribution of continuous actions whose D dimensions are independent."""

    mean: Float[Array, "*batch D"]
    log_std: Float[Array, "*batch D"]

    def log_prob(self, action: Float[Array, " D"]) -> Float[Array, ""]:
        """Log density of one action, in nats."""
        errors = (action - self.mean) * jnp.exp(-self.log_std)
        terms = -0.5 * jnp.square(errors) - self.log_std - 0.5 * jnp.log(2.0 * jnp.pi)
        return jnp.sum(terms)

    def entropy(self) -> Float[Array, ""]:
        """Differential entropy, in nats."""
        return jnp.sum(self.log_std + 0.5 * jnp.log(2.0 * jnp.pi * jnp.e))

    def for_sampling(self) -> "Gaussian":
        """The distribution itself."""
        return self

    def sample(self, uniforms: Float[Array, " U"]) -> Float[Array, " D"]:
        """Draw an action by inversion of numbers in [0, 1), one for each of its dimensions."""
        # The uniforms are multiples of 2^-24; half a step more keeps them off −1 and 1.
        symmetric = 2.0 * uniforms[: self.mean.shape[-1]] - 1.0 + 2.0**-24
        normals = jnp.sqrt(2.0) * jax.scipy.special.erfinv(symmetric)
        return self.mean + jnp.exp(self.log_std) * normals

    def temper(self, temperature: Float[Array, ""] | float) -> "Gaussian":
        """The distribution π^(1/T), normalised: its variance times T. At zero, the mean action."""
        log_temperature = jnp.log(jnp.maximum(temperature, 1e-12))
        return Gaussian(self.mean, self.log_std + 0.5 * log_temperature)

    def mix(self, log_weights: Float[Array, " E"]) -> "GaussianMixture":
        """The mixture of experts [E] with these log-weights."""
        return GaussianMixture(log_weights, self.mean, self.log_std)

    def pool(self, log_weights: Float[Array, " E"]) -> "Gaussian":
        """The Gaussian with the mean and the variance of the mixture of experts [E].

        It is what one Gaussian fitted to pooled demonstrations by maximum likelihood converges to.
        """
        weights = jnp.exp(log_weights)[:, None]
        mean = jnp.sum(weights * self.mean, axis=0)
        squares = jnp.exp(2.0 * self.log_std) + jnp.square(self.mean - mean[None])
        return Gaussian(mean, 0.5 * jnp.log(jnp.sum(weights * squares, axis=0)))


class GaussianMixture(NamedTuple):
    """A mixture of M diagonal Gaussians; its log-weights are normalised."""

    log_weights: Float[Array, "*batch M"]
    means: Float[Array, "*batch M D"]
    log_stds: Float[Array, "*batch M D"]

    def log_prob(self, action: Float[Array, " D"]) -> Float[Array, ""]:
        """Log density of one action, in nats: log Σ_m w_m N(action; μ_m, σ_m²)."""
        terms = jax.vmap(Gaussian.log_prob, (0, None))(Gaussian(self.means, self.log_stds), action)
        return jax.nn.logsumexp(self.log_weights + terms)

    def for_sampling(self) -> "GaussianMixture":
        """The distribution itself."""
        return self

    def sample(self, uniforms: Float[Array, " U"]) -> Float[Array, " D"]:
        """Draw an action from D + 1 numbers in [0, 1): the last one chooses the component."""
        size = self.means.shape[-1]
        component = Categorical(self.log_weights).sample(uniforms[size:])
        return Gaussian(self.means[component], self.log_stds[component]).sample(uniforms)

    def temper(self, temperature: Float[Array, ""] | float) -> "GaussianMixture":
        """Temper weights and components; at zero, the centre of the heaviest component."""
        log_temperature = jnp.log(jnp.maximum(temperature, 1e-12))
        log_weights = mixture.temper(self.log_weights, temperature)
        return GaussianMixture(log_weights, self.means, self.log_stds + 0.5 * log_temperature)


HeadDistribution = Categorical | Gaussian
"""The distribution of one action that a head of a network gives."""
Distribution = Categorical | Gaussian | GaussianMixture
Sampler = CumulativeCategorical | Distribution
"""Anything that an action can be sampled from."""


def point(action: Float[Array, " D"]) -> Gaussian:
    """The distribution that always gives the same action."""
    return Gaussian(action, jnp.full_like(action, LOG_FLOOR))
