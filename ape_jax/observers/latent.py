"""An observer who separates the experts again: a mixture of policies over whole episodes.

Who acts is drawn once an episode, so an episode's actions say together who that was. Expectation
maximisation over episodes finds K policies with

    p(episode) = Σ_k ρ_k Π_t π_k(a_t|s_t)

and K is the smallest that makes held-out episodes as likely as any does, within a standard error.
Each policy found is a clone of its own.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ape_jax.core.mixture import LOG_FLOOR
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.networks import Networks
from ape_jax.observers import fitting
from ape_jax.observers.behaviour_cloning import TabularCloning
from ape_jax.observers.policies import HeadPolicy, Modes, TablePolicy
from ape_jax.types import Params, PRNGKey


def episode_log_probs(
    step_log_probs: Float[Array, "N M"], demonstrations: Demonstrations, num_episodes: int
) -> Float[Array, "episodes M"]:
    """Σ_t log π_m(a_t|s_t) of every episode under every mode; zero where there is no episode."""
    first = demonstrations.episode[0]
    return jax.ops.segment_sum(
        step_log_probs, demonstrations.episode - first, num_segments=num_episodes
    )


def simplest(log_likelihoods: Float[Array, "K samples"]) -> Int[Array, ""]:
    """Index of the first model that is within one standard error of the likeliest one.

    With a single sample there is no such error, and the first model is chosen.

    Args:
      log_likelihoods: of samples under models of growing size; zero, under all of them, for a
        sample that is not held out.
    """
    exists = jnp.any(log_likelihoods != 0, axis=0)
    count = jnp.sum(exists)
    best = log_likelihoods[jnp.argmax(jnp.sum(log_likelihoods, axis=1))]
    missing = best[None] - log_likelihoods
    total = jnp.sum(missing, axis=1)
    centred = jnp.where(exists[None], missing - total[:, None] / jnp.maximum(count, 1), 0.0)
    error = jnp.sqrt(jnp.sum(jnp.square(centred), axis=1) * count / jnp.maximum(count - 1, 1))
    return jnp.where(count < 2, 0, jnp.argmax(total <= error))


@dataclasses.dataclass(frozen=True)
class TabularLatent:
    """Exact expectation maximisation where observations are finite."""

    num_states: int
    """States (S)."""
    num_actions: int
    """Actions (A)."""
    max_modes: int = 4
    """The most experts that it looks for (K)."""
    num_restarts: int = 8
    """For each K; the likeliest one counts."""
    num_iterations: int = 100
    """Of expectation maximisation."""
    num_steps: int = 20_000
    """Steps that the search for modes looks at; the modes are then fitted to all of them."""
    shrinkage: float = 1.0
    """Pseudo-count of the pooled clone in every state, so that what a mode never showed is filled
    in from the others."""

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> Modes:
        """Search the modes for every K, choose K, and fit its modes to all demonstrations."""
        part = jax.tree.map(lambda x: x[: self.num_steps], demonstrations)
        kept = fitting.held_out(part)
        shown, kept = fitting.either(~kept), fitting.either(kept)
        clone = TabularCloning(self.num_states, self.num_actions).fit(key, part)
        pooled = jnp.exp(clone.log_probs).ravel()

        def search(key, num_modes):
            """The likeliest of several starts."""

            def start(key):
                noise = jax.random.normal(key, (len(pooled), num_modes))
                tables = self._normalise(pooled[:, None] * jnp.exp(noise))
                carry = (tables, jnp.zeros(num_modes) - jnp.log(num_modes))

                def iterate(carry, _):
                    return self._maximise(pooled, part, shown, *carry), None

                carry, _ = jax.lax.scan(iterate, carry, length=self.num_iterations)
                return carry, jnp.sum(self._log_likelihoods(part, shown, *carry))

            found, log_likelihoods = jax.lax.map(start, jax.random.split(key, self.num_restarts))
            found = jax.tree.map(lambda x: x[jnp.argmax(log_likelihoods)], found)
            return found, self._log_likelihoods(part, kept, *found)

        candidates, scores = [], []
        for num_modes in range(1, self.max_modes + 1):
            (tables, log_shares), score = search(jax.random.fold_in(key, num_modes), num_modes)
            missing = self.max_modes - num_modes
            tables = jnp.pad(tables, ((0, 0), (0, missing)), mode="edge")
            log_shares = jnp.pad(log_shares, (0, missing), constant_values=LOG_FLOOR)
            candidates.append((tables, log_shares))
            scores.append(score)
        chosen = simplest(jnp.stack(scores))
        tables, log_shares = jax.tree.map(lambda *x: jnp.stack(x)[chosen], *candidates)
        everything = jnp.ones(len(demonstrations.action))
        tables, log_shares = self._maximise(pooled, demonstrations, everything, tables, log_shares)
        log_probs = jnp.maximum(jnp.log(tables.T), LOG_FLOOR)
        shape = (self.max_modes, self.num_states, self.num_actions)
        return Modes(TablePolicy(log_probs.reshape(shape)), jnp.exp(log_shares))

    def _joint(self, steps, tables, log_shares) -> Float[Array, "episodes M"]:
        """Every log ρ_m + Σ_t log π_m(a_t|s_t)."""
        pair = steps.observation * self.num_actions + steps.action
        log_probs = jnp.maximum(jnp.log(tables), -50.0)[pair]
        return log_shares[None] + episode_log_probs(log_probs, steps, len(pair))

    def _log_likelihoods(self, steps, weights, tables, log_shares) -> Float[Array, " episodes"]:
        """Of the episodes that carry weight; zero for the others."""
        joint = self._joint(steps, tables, log_shares)
        counts = jax.ops.segment_max(weights, steps.episode, num_segments=len(joint))
        return jnp.where(counts > 0, jax.nn.logsumexp(joint, axis=-1), 0.0)

    def _maximise(self, pooled, steps, weights, tables, log_shares):
        """One step of expectation and maximisation."""
        responsibility = jax.nn.softmax(self._joint(steps, tables, log_shares), axis=-1)
        mine = responsibility[steps.episode] * weights[:, None]
        pair = steps.observation * self.num_actions + steps.action
        counts = jax.ops.segment_sum(mine, pair, num_segments=len(pooled))
        begins = jnp.diff(steps.episode, prepend=-1) != 0
        shares = jnp.sum(jnp.where(begins[:, None], mine, 0.0), axis=0)
        log_shares = jnp.log(jnp.maximum(shares / jnp.sum(shares), 1e-30))
        return self._normalise(counts + self.shrinkage * pooled[:, None]), log_shares

    def _normalise(self, table: Float[Array, "SA M"]) -> Float[Array, "SA M"]:
        """Probabilities of the actions of each state."""
        shape = (self.num_states, self.num_actions, table.shape[-1])
        table = table.reshape(shape)
        totals = jnp.sum(table, axis=1, keepdims=True)
        return (table / jnp.maximum(totals, 1e-30)).reshape(-1, shape[-1])


@dataclasses.dataclass(frozen=True)
class LatentCloning:
    """The same mixture with a network for each mode, by ascent on the likelihood of episodes."""

    networks: Networks
    """One head of the clones' kind."""
    max_modes: int = 3
    """The most experts that it looks for (K)."""
    num_updates: int = 2000
    """Steps of the optimiser."""
    block_size: int = 4096
    """Consecutive steps of an update; an episode cut by the block's edge counts as far as seen."""
    learning_rate: float = 1e-2
    """Adam step."""

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> Modes:
        """Fit for every K, and choose K."""
        size = min(self.block_size, len(demonstrations.action))
        kept = fitting.held_out(demonstrations)
        shown, kept = fitting.either(~kept), fitting.either(kept)

        def negative_log_likelihood(params, weights, begin):
            heads, logits = params
            block, weights = jax.tree.map(
                lambda x: jax.lax.dynamic_slice_in_dim(x, begin, size), (demonstrations, weights)
            )
            log_probs = jax.vmap(jax.vmap(self.networks.log_probs, (0, None)), (None, 0))(
                heads, block.observation
            )
            taken = jnp.take_along_axis(log_probs, block.action[:, None, None], axis=-1)[..., 0]
            joint = jax.nn.log_softmax(logits)[None] + episode_log_probs(
                taken * weights[:, None], block, size
            )
            # Episodes that do not exist, or carry no weight, have likelihood one.
            return -jnp.sum(jax.nn.logsumexp(joint, axis=-1)) / jnp.maximum(jnp.sum(weights), 1.0)

        num_blocks = len(demonstrations.action) // size
        begins = jnp.arange(min(num_blocks, 8)) * size

        def search(key, num_modes):
            key_init, key_updates = jax.random.split(key)
            init = jax.vmap(self.networks.head.init, (0, None))
            heads = init(jax.random.split(key_init, num_modes), demonstrations.observation[0])

            def loss(params, key):
                begin = jax.random.randint(key, (), 0, len(demonstrations.action) - size + 1)
                return negative_log_likelihood(params, shown, begin)

            def held_out_losses(params):
                return jax.lax.map(lambda b: negative_log_likelihood(params, kept, b), begins)

            def held_out_loss(params):
                return jnp.mean(held_out_losses(params))

            params = fitting.descend(
                key_updates,
                (heads, jnp.zeros(num_modes)),
                loss,
                held_out_loss,
                self.num_updates,
                self.learning_rate,
            )
            return params, -held_out_losses(params)

        candidates, scores = [], []
        for num_modes in range(1, self.max_modes + 1):
            (heads, logits), score = search(jax.random.fold_in(key, num_modes), num_modes)
            candidates.append(_pad(heads, jax.nn.softmax(logits), self.max_modes - num_modes))
            scores.append(score)
        chosen = simplest(jnp.stack(scores))
        heads, shares = jax.tree.map(lambda *x: jnp.stack(x)[chosen], *candidates)
        return Modes(HeadPolicy(heads, self.networks.head), shares)


def _pad(heads: Params, shares: Float[Array, " M"], missing: int) -> tuple[Params, Array]:
    """Modes that are not used: copies of the last one, with share zero."""

    def repeat(x):
        return jnp.concatenate([x, jnp.repeat(x[-1:], missing, axis=0)])

    return jax.tree.map(repeat, heads), jnp.pad(shares, (0, missing))
