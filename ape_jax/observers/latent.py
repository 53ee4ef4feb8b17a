"""Observers that separate the experts again: a mixture of policies over whole episodes.

The expert is drawn once for each episode, so all actions of an episode together tell which expert
acted. Both observers here fit K policies (modes) to

    p(episode) = Σ_k ρ_k Π_t π_k(a_t|s_t)

and choose the smallest K whose likelihood of held-out episodes is within one standard error of the
best. Each mode is a clone of its own.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from ape_jax.core.distributions import Categorical
from ape_jax.core.mixture import LOG_FLOOR
from ape_jax.core.policies import TablePolicy
from ape_jax.demonstrations import episodes
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.networks import HeadPolicy, Networks
from ape_jax.observers import fitting
from ape_jax.observers.behaviour_cloning import TabularCloning
from ape_jax.types import PRNGKey


@struct.dataclass
class LatentMixture:
    """Several clones, of which one is drawn for each episode.

    As a policy it mixes the clones at each step by their probabilities given the episode so far.
    This has the same law as to draw one clone for each episode.
    """

    policies: Any
    """The clones: policies without memory of discrete actions, stacked [M, …]."""
    shares: Float[Array, "..."]
    """Share of the demonstrated episodes of each clone [M]; zero for one that is not used."""
    num_actions: int = struct.field(pytree_node=False)

    def initial_carry(self) -> tuple[Float[Array, " M"], Float[Array, "M A"]]:
        """Log-probabilities of the clones, and zeros in place of those of a last action."""
        log_shares = jnp.log(jnp.maximum(self.shares, 1e-30))
        return log_shares, jnp.zeros((len(self.shares), self.num_actions))

    def __call__(self, carry, observation, last_action) -> tuple[Any, Categorical]:
        """Weigh the clones by what they gave the last action, and mix them."""
        log_posterior, last_log_probs = carry
        log_posterior = jax.nn.log_softmax(log_posterior + last_log_probs[:, last_action])
        acts = jax.vmap(lambda policy: policy.distribution(observation))(self.policies)
        return (log_posterior, acts.log_probs), acts.mix(log_posterior)


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

    Models are ordered by size. A sample that is not held out has log-likelihood zero under all of
    them. With a single sample there is no standard error, and the first model is chosen.
    """
    exists = jnp.any(log_likelihoods != 0, axis=0)
    count = jnp.sum(exists)
    best = log_likelihoods[jnp.argmax(jnp.sum(log_likelihoods, axis=1))]
    missing = best[None] - log_likelihoods
    total = jnp.sum(missing, axis=1)
    centred = jnp.where(exists[None], missing - total[:, None] / jnp.maximum(count, 1), 0.0)
    error = jnp.sqrt(jnp.sum(jnp.square(centred), axis=1) * count / jnp.maximum(count - 1, 1))
    return jnp.where(count < 2, 0, jnp.argmax(total <= error))


def choose(search: Callable[[PRNGKey, int], tuple], key: PRNGKey, max_modes: int) -> Any:
    """The fit of the number of modes that ``simplest`` takes, of 1 to K.

    The search maps a key and a number of modes to a fit, padded to K modes, and to the
    log-likelihoods of held-out samples under it.
    """
    numbers = range(1, max_modes + 1)
    fits, scores = zip(*(search(jax.random.fold_in(key, m), m) for m in numbers), strict=True)
    chosen = simplest(jnp.stack(scores))
    return jax.tree.map(lambda *x: jnp.stack(x)[chosen], *fits)


@dataclasses.dataclass(frozen=True)
class TabularLatent:
    """Exact expectation maximisation where observations are finite."""

    num_states: int
    num_actions: int
    max_modes: int = 4
    """The largest number of modes that is tried (K)."""
    num_restarts: int = 8
    """Random starts for each K; the one with the highest likelihood counts."""
    num_iterations: int = 100
    num_steps: int = 20_000
    """Steps that the search for modes uses; the chosen modes are then fitted to all steps."""
    shrinkage: float = 1.0
    """Pseudo-count of the pooled clone in every state: it fills in what a mode never showed."""

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> LatentMixture:
        """Search the modes for every K, choose K, and fit its modes to all demonstrations."""
        part = jax.tree.map(lambda x: x[: self.num_steps], demonstrations)
        shown, kept = fitting.split(part)
        clone = TabularCloning(self.num_states, self.num_actions).fit(key, part)
        pooled = jnp.exp(clone.table.log_probs).ravel()

        def search(key, num_modes):
            def start(key):
                noise = jax.random.normal(key, (len(pooled), num_modes))
                tables = self._normalise(pooled[:, None] * jnp.exp(noise))
                carry = (tables, jnp.zeros(num_modes) - jnp.log(num_modes))

                def iterate(carry, _):
                    return self._maximise(pooled, part, shown, *carry), None

                carry, _ = jax.lax.scan(iterate, carry, length=self.num_iterations)
                return carry, jnp.sum(self._log_likelihoods(part, shown, *carry))

            found, likelihoods = jax.lax.map(start, jax.random.split(key, self.num_restarts))
            tables, log_shares = jax.tree.map(lambda x: x[jnp.argmax(likelihoods)], found)
            missing = (0, self.max_modes - num_modes)
            padded = (
                jnp.pad(tables, ((0, 0), missing), mode="edge"),
                jnp.pad(log_shares, missing, constant_values=LOG_FLOOR),
            )
            return padded, self._log_likelihoods(part, kept, tables, log_shares)

        tables, log_shares = choose(search, key, self.max_modes)
        everything = jnp.ones(len(demonstrations.action))
        tables, log_shares = self._maximise(pooled, demonstrations, everything, tables, log_shares)
        log_probs = jnp.maximum(jnp.log(tables.T), LOG_FLOOR)
        shape = (self.max_modes, self.num_states, self.num_actions)
        policies = TablePolicy(Categorical(log_probs.reshape(shape)))
        return LatentMixture(policies, jnp.exp(log_shares), self.num_actions)

    def _joint(self, steps, tables, log_shares) -> Float[Array, "episodes M"]:
        """Log ρ_m + Σ_t log π_m(a_t|s_t) of every episode and mode."""
        pair = steps.observation * self.num_actions + steps.action
        log_probs = jnp.maximum(jnp.log(tables), -50.0)[pair]
        return log_shares[None] + episode_log_probs(log_probs, steps, len(pair))

    def _log_likelihoods(self, steps, weights, tables, log_shares) -> Float[Array, " episodes"]:
        """Log-likelihoods of the episodes with weight; zero for the others."""
        joint = self._joint(steps, tables, log_shares)
        counts = jax.ops.segment_max(weights, steps.episode, num_segments=len(joint))
        return jnp.where(counts > 0, jax.nn.logsumexp(joint, axis=-1), 0.0)

    def _maximise(self, pooled, steps, weights, tables, log_shares):
        """One step of expectation maximisation."""
        responsibility = jax.nn.softmax(self._joint(steps, tables, log_shares), axis=-1)
        own = responsibility[steps.episode] * weights[:, None]
        pair = steps.observation * self.num_actions + steps.action
        counts = jax.ops.segment_sum(own, pair, num_segments=len(pooled))
        begins = episodes.begins(steps)
        shares = jnp.sum(jnp.where(begins[:, None], own, 0.0), axis=0)
        log_shares = jnp.log(jnp.maximum(shares / jnp.sum(shares), 1e-30))
        return self._normalise(counts + self.shrinkage * pooled[:, None]), log_shares

    def _normalise(self, table: Float[Array, "SA M"]) -> Float[Array, "SA M"]:
        """Divide by the sum over the actions of each state."""
        by_state = table.reshape(self.num_states, self.num_actions, -1)
        totals = jnp.sum(by_state, axis=1, keepdims=True)
        return (by_state / jnp.maximum(totals, 1e-30)).reshape(table.shape)


@dataclasses.dataclass(frozen=True)
class LatentCloning(fitting.Training):
    """The same mixture with a network for each mode, by ascent on the likelihood of episodes."""

    networks: Networks
    """Each mode is one head of this kind."""
    max_modes: int = 3
    """The largest number of modes that is tried (K)."""
    _: dataclasses.KW_ONLY
    batch_size: int = 4096
    """Consecutive steps of an update; of an episode that they cut, the part among them counts."""
    learning_rate: float = 1e-2

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> LatentMixture:
        """Fit the modes for every K, and choose K."""
        size = min(self.batch_size, len(demonstrations.action))
        shown, kept = fitting.split(demonstrations)

        def negative_log_likelihood(params, weights, begin):
            heads, logits = params
            block, weights = jax.tree.map(
                lambda x: jax.lax.dynamic_slice_in_dim(x, begin, size), (demonstrations, weights)
            )
            log_probs = jax.vmap(jax.vmap(self.networks.log_probs, (0, None)), (None, 0))(
                heads, block.observation
            )
            taken = jax.vmap(Categorical.log_prob)(Categorical(log_probs), block.action)
            joint = jax.nn.log_softmax(logits)[None] + episode_log_probs(
                taken * weights[:, None], block, size
            )
            # Episodes that do not exist, or have no weight, have likelihood one.
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

            heads, logits = params = self.minimize(
                key_updates,
                (heads, jnp.zeros(num_modes)),
                loss,
                lambda params: jnp.mean(held_out_losses(params)),
            )
            # Modes that are not used are copies of the last one, with share zero.
            numbers = jnp.minimum(jnp.arange(self.max_modes), num_modes - 1)
            padded = jax.tree.map(lambda x: x[numbers], heads)
            shares = jnp.pad(jax.nn.softmax(logits), (0, self.max_modes - num_modes))
            return (padded, shares), -held_out_losses(params)

        heads, shares = choose(search, key, self.max_modes)
        policies = HeadPolicy(heads, self.networks)
        return LatentMixture(policies, shares, self.networks.num_actions)
