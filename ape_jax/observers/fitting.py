"""Fitting of observers: held-out episodes, and Adam that stops where it was best."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.networks import with_statistics
from ape_jax.types import Params, Policy, PRNGKey


@runtime_checkable
class Cloner(Protocol):
    """An observer that clones steps, each of which may count more or less than others."""

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> Policy:
        """The clone of all steps."""
        ...

    def fit_weighted(
        self, key: PRNGKey, demonstrations: Demonstrations, weights: Float[Array, " N"] | None
    ) -> Policy:
        """The clone where each step counts as much as its weight."""
        ...


NUM_CHECKS = 20
"""Number of times that one fit computes the held-out loss."""


def held_out(demonstrations: Demonstrations) -> Bool[Array, "..."]:
    """The steps that are kept out of a fit: every tenth episode, whole; none of five or fewer."""
    return demonstrations.episode % 10 == 5


def split(
    demonstrations: Demonstrations, weights: Float[Array, " N"] | None = None
) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
    """Weights of the steps to fit and of the held-out steps: zero, or the step's own weight.

    A part that would weigh nothing is all steps. Without weights each step weighs one.
    """
    kept = held_out(demonstrations)
    if weights is None:
        weights = jnp.ones(len(kept))

    def part(chosen):
        own = jnp.where(chosen, weights, 0.0)
        return jnp.where(jnp.any(own > 0), own, weights)

    return part(~kept), part(kept)


def draw(key: PRNGKey, weights: Float[Array, " N"], count: int) -> Int[Array, " count"]:
    """Numbers of steps drawn with replacement, in proportion to their weights."""
    cumulative = jnp.cumsum(weights)
    uniforms = jax.random.uniform(key, (count,)) * cumulative[-1]
    rows = jnp.searchsorted(cumulative, uniforms, side="right")
    return jnp.minimum(rows, len(weights) - 1).astype(jnp.int32)


def standard_units(
    features: Float[Array, "N F"],
) -> tuple[Float[Array, " F"], Float[Array, " F"]]:
    """Mean of each feature, and one over its standard deviation.

    A feature that hardly varies stays as it is: to scale it would amplify noise.
    """
    deviations = jnp.std(features, axis=0)
    scale = jnp.where(deviations > 1e-3, 1.0 / jnp.maximum(deviations, 1e-3), 1.0)
    return jnp.mean(features, axis=0), scale


def flat_observations(demonstrations: Demonstrations) -> Float[Array, "N F"]:
    """Observations that are not finite, as vectors."""
    observations = demonstrations.observation
    return observations.reshape(len(observations), -1).astype(jnp.float32)


def standardize(params: Params, demonstrations: Demonstrations) -> Params:
    """Set the statistics of networks that normalise to those of the demonstrated observations."""
    return with_statistics(params, *standard_units(flat_observations(demonstrations)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """Settings with which an observer trains its network, by Adam with early stopping."""

    num_updates: int = 2000
    """Steps of Adam, rounded up to a multiple of ``NUM_CHECKS``."""
    batch_size: int = 1024
    """Steps of demonstrations in an update, drawn with replacement."""
    learning_rate: float = 3e-3
    """Adam step at the start; it falls along a half cosine to zero."""

    def minimize(
        self,
        key: PRNGKey,
        params: Params,
        loss: Callable[[Params, PRNGKey], Float[Array, ""]],
        held_out_loss: Callable[[Params], Float[Array, ""]] | None,
    ) -> Params:
        """Minimise a loss, and return the parameters whose held-out loss was lowest.

        All updates are run even if the held-out loss rises again, so that fits of several seeds
        stay one program.

        Args:
          key: drives what ``loss`` draws.
          params: where to start.
          loss: loss of a minibatch that it draws with the key.
          held_out_loss: computed ``NUM_CHECKS`` times. None returns the last parameters, for a
            loss whose targets move along with them.
        """
        between = -(-self.num_updates // NUM_CHECKS)
        rate = optax.cosine_decay_schedule(self.learning_rate, between * NUM_CHECKS)
        optimizer = optax.adam(rate)

        def update(carry, key):
            params, opt_state = carry
            changes, opt_state = optimizer.update(jax.grad(loss)(params, key), opt_state)
            return (optax.apply_updates(params, changes), opt_state), None

        keys = jax.random.split(key, (NUM_CHECKS, between))
        if held_out_loss is None:
            return jax.lax.scan(update, (params, optimizer.init(params)), keys.ravel())[0][0]

        def update_and_check(carry, keys):
            now, best, lowest = carry
            now, _ = jax.lax.scan(update, now, keys)
            reached = held_out_loss(now[0])
            better = reached < lowest
            best = jax.tree.map(lambda new, old: jnp.where(better, new, old), now[0], best)
            return (now, best, jnp.minimum(reached, lowest)), None

        start = ((params, optimizer.init(params)), params, held_out_loss(params))
        (_, best, _), _ = jax.lax.scan(update_and_check, start, keys)
        return best

    def fit_samples(
        self,
        keys: Key[Array, " 3"] | Sequence[PRNGKey],
        init: Callable[[PRNGKey, Shaped[Array, "..."]], Params],
        loss: Callable[[Params, Shaped[Array, "..."], Shaped[Array, "..."]], Float[Array, ""]],
        demonstrations: Demonstrations,
        weights: Float[Array, " N"] | None = None,
    ) -> Params:
        """Fit parameters to minibatches of steps, with early stopping on held-out ones.

        Args:
          keys: three keys: of the start, of the held-out batch, and of the updates.
          init: a key and an observation to the parameters to start from.
          loss: parameters, observation and action of one step to its loss.
          demonstrations: steps [N].
          weights: steps are drawn in proportion to them; None draws all alike.
        """
        key_init, key_kept, key_updates = keys
        shown, kept = split(demonstrations, weights)

        def batch_loss(params, key, weights):
            rows = draw(key, weights, self.batch_size)
            steps = (demonstrations.observation[rows], demonstrations.action[rows])
            return jnp.mean(jax.vmap(loss, (None, 0, 0))(params, *steps))

        return self.minimize(
            key_updates,
            standardize(init(key_init, demonstrations.observation[0]), demonstrations),
            lambda params, key: batch_loss(params, key, shown),
            lambda params: batch_loss(params, key_kept, kept),
        )
