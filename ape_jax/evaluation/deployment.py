"""The results of one observer's clone, in every way of deploying it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ape_jax.core.policies import Tempered, greedy, remembers
from ape_jax.core.tabular import exact_einsum
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.envs.world import World
from ape_jax.evaluation.returns import expected_return
from ape_jax.observers.latent import LatentMixture, episode_log_probs
from ape_jax.types import Policy, PRNGKey

DEPLOYMENTS = ("sampled", "tempered", "greedy", "best")
"""The ways in which a clone acts, in the order of tables."""

TEMPERATURE = 0.5

LEAST_PROB = 1e-6
"""Lower probabilities count as this much in a log-likelihood: a clone by counting has zeros."""

MIN_MODE_SHARE = 0.02
"""Modes with a smaller share of the episodes are not tried when the best mode is looked for."""


class Outcome(NamedTuple):
    """The result of one deployment of a clone."""

    clone_return: Float[Array, "..."]
    agreement: Float[Array, "..."]
    """Probability of the action that a demonstrator took, mean over held-out steps."""
    log_likelihood: Float[Array, "..."] | None
    """Mean log-probability of held-out actions, in nats a step; None unless sampled."""


def deploy(
    world: World, policy: Policy, held_out: Demonstrations, key: PRNGKey
) -> dict[str, Outcome]:
    """Deploy a clone sampled, greedily and tempered; score it on demonstrations it did not see."""
    sampled, by_greedy, by_tempered = (
        _outcome(world, deployed, held_out, key)
        for deployed in (policy, greedy(policy), Tempered(policy, TEMPERATURE))
    )
    return {
        "sampled": sampled,
        "greedy": by_greedy._replace(log_likelihood=None),
        "tempered": by_tempered._replace(log_likelihood=None),
    }


def deploy_modes(
    world: World, mixture: LatentMixture, held_out: Demonstrations, key: PRNGKey
) -> dict[str, Outcome]:
    """Deploy a mixture of modes: one drawn for each episode, or the best one.

    The attacker finds the best mode by trying them in the environment, sampled and greedy.
    """
    shares = mixture.shares

    def each(deployed):
        return jax.vmap(lambda policy: _outcome(world, deployed(policy), held_out, key))(
            mixture.policies
        )

    sampled, by_greedy = each(lambda policy: policy), each(greedy)
    log_probs = jax.vmap(lambda policy: step_log_probs(policy, held_out))(mixture.policies)
    joint = episode_log_probs(
        jnp.maximum(log_probs, jnp.log(LEAST_PROB)).T, held_out, log_probs.shape[1]
    )
    log_shares = jnp.log(jnp.maximum(shares, 1e-30))
    log_likelihood = jnp.sum(jax.nn.logsumexp(joint + log_shares[None], axis=-1)) / len(joint)

    both = jax.tree.map(lambda *x: jnp.concatenate(x), sampled, by_greedy)
    tried = jnp.tile(shares >= MIN_MODE_SHARE, 2)
    best = jnp.argmax(jnp.where(tried, both.clone_return, -jnp.inf))
    # The best of noisy returns is too high, so that policy is evaluated once more.
    policy = jax.tree.map(lambda x: x[best % len(shares)], mixture.policies)
    temperature = jnp.where(best < len(shares), 1.0, 0.0)
    best_return = expected_return(world, Tempered(policy, temperature), jax.random.fold_in(key, 1))

    def average(outcome, log_likelihood=None):
        clone_return = exact_einsum("m,m->", shares, outcome.clone_return)
        agreement = exact_einsum("m,m->", shares, outcome.agreement)
        return Outcome(clone_return, agreement, log_likelihood)

    return {
        "sampled": average(sampled, log_likelihood),
        "greedy": average(by_greedy),
        "best": Outcome(best_return, both.agreement[best], None),
    }


def _outcome(world: World, policy: Policy, held_out: Demonstrations, key: PRNGKey) -> Outcome:
    log_probs = step_log_probs(policy, held_out)
    return Outcome(
        expected_return(world, policy, key),
        jnp.mean(jnp.exp(log_probs)),
        jnp.mean(jnp.maximum(log_probs, jnp.log(LEAST_PROB))),
    )


def step_log_probs(policy: Policy, demonstrations: Demonstrations) -> Float[Array, " N"]:
    """Log π(a_t|·) of every demonstrated step; what is remembered is that of its episode."""
    actions = demonstrations.action
    begins = jnp.diff(demonstrations.episode, prepend=-1) != 0
    of_actions = begins.reshape(-1, *[1] * (actions.ndim - 1))
    last_actions = jnp.where(of_actions, -1, jnp.roll(actions, 1, axis=0))

    def step(carry, transition):
        begin, observation, last_action, action = transition
        start = policy.initial_carry()
        carry = jax.tree.map(lambda new, old: jnp.where(begin, new, old), start, carry)
        carry, acts = policy(carry, observation, last_action)
        return carry, acts.log_prob(action)

    steps = (begins, demonstrations.observation, last_actions, actions)
    if remembers(policy):
        return jax.lax.scan(step, policy.initial_carry(), steps)[1]
    return jax.vmap(lambda *transition: step((), transition)[1])(*steps)
