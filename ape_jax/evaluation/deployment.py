"""The results of one observer's clone, in every way of deploying it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ape_jax.core.policies import Tempered, greedy, remembers
from ape_jax.core.tabular import exact_einsum
from ape_jax.demonstrations import episodes
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.envs.world import World
from ape_jax.evaluation.returns import NUM_EPISODES, two_returns
from ape_jax.observers.candidates import Candidates
from ape_jax.observers.latent import LatentMixture, episode_log_probs
from ape_jax.types import Policy, PRNGKey

TEMPERATURE = 0.5

LEAST_PROB = 1e-6
"""Lower probabilities count as this much in a log-likelihood: a clone by counting has zeros."""

MIN_MODE_SHARE = 0.02
"""Modes with a smaller share of the episodes are not tried when the best mode is looked for."""


WAYS: dict[str, Callable[[Policy], Policy]] = {
    "sampled": lambda policy: policy,
    "tempered": lambda policy: Tempered(policy, TEMPERATURE),
    "greedy": greedy,
    "own": lambda policy: policy,
}
"""Ways to deploy a clone. One that chooses its actions itself acts in its own way."""

DEPLOYMENTS = (*WAYS, "best")
"""The ways in which a clone acts, in the order of tables; the best is found by trying."""


class Outcome(NamedTuple):
    """The result of one deployment of a clone."""

    clone_return: Float[Array, "..."]
    choice_return: Float[Array, "..."]
    """The return in other episodes, by which an attacker chooses between clones."""
    agreement: Float[Array, "..."]
    """Probability of the action that a demonstrator took, mean over held-out steps."""
    log_likelihood: Float[Array, "..."]
    """Mean log-probability of held-out actions, in nats a step."""


Deploy = Callable[..., dict[str, Outcome]]
"""Maps the world, what an observer fitted, held-out steps, a key and a number of episodes to the
outcomes by deployment."""


def deploy_as(*deployments: str) -> Deploy:
    """Deploy a clone in some of the ways of ``WAYS``."""

    def deploy(world, policy, held_out, key, num_episodes=NUM_EPISODES):
        return {
            name: _outcome(world, WAYS[name](policy), held_out, key, num_episodes)
            for name in deployments
        }

    return deploy


deploy = deploy_as("sampled", "tempered", "greedy")
"""A clone that samples, that acts greedily, and what lies between."""


def deploy_planned(
    world: World,
    policy: Policy,
    held_out: Demonstrations,
    key: PRNGKey,
    num_episodes: int = NUM_EPISODES,
) -> dict[str, Outcome]:
    """Deploy a plan: as it is where observations are finite, else sampled and greedily."""
    ways = ("own",) if world.num_states is not None else ("sampled", "greedy")
    return deploy_as(*ways)(world, policy, held_out, key, num_episodes)


def deploy_candidates(
    world: World,
    clone: Candidates,
    held_out: Demonstrations,
    key: PRNGKey,
    num_episodes: int = NUM_EPISODES,
) -> dict[str, Outcome]:
    """Deploy the policy that was chosen by likelihood, and the best of those that are tried."""

    def evaluate(policy):
        return _outcome(world, policy, held_out, key, num_episodes)

    tried = jax.lax.map(evaluate, clone.policies)
    best = jnp.argmax(tried.choice_return)
    return {
        "own": jax.tree.map(lambda x: x[clone.chosen], tried),
        "best": jax.tree.map(lambda x: x[best], tried),
    }


def deploy_modes(
    world: World,
    mixture: LatentMixture,
    held_out: Demonstrations,
    key: PRNGKey,
    num_episodes: int = NUM_EPISODES,
) -> dict[str, Outcome]:
    """Deploy a mixture of modes: one drawn for each episode, or the best one.

    The attacker finds the best mode by trying them in the environment, sampled and greedy.
    """
    shares = mixture.shares

    def each(way):
        def evaluate(policy):
            return _outcome(world, way(policy), held_out, key, num_episodes)

        return jax.vmap(evaluate)(mixture.policies)

    sampled, by_greedy = each(WAYS["sampled"]), each(greedy)
    log_probs = jax.vmap(lambda policy: step_log_probs(policy, held_out))(mixture.policies)
    joint = episode_log_probs(
        jnp.maximum(log_probs, jnp.log(LEAST_PROB)).T, held_out, log_probs.shape[1]
    )
    log_shares = jnp.log(jnp.maximum(shares, 1e-30))
    log_likelihood = jnp.sum(jax.nn.logsumexp(joint + log_shares[None], axis=-1)) / len(joint)

    both = jax.tree.map(lambda *x: jnp.concatenate(x), sampled, by_greedy)
    tried = jnp.tile(shares >= MIN_MODE_SHARE, 2)
    best = jnp.argmax(jnp.where(tried, both.choice_return, -jnp.inf))

    def average(outcome, log_likelihood):
        means = jax.tree.map(lambda x: exact_einsum("m,m->", shares, x), outcome)
        return means._replace(log_likelihood=log_likelihood)

    return {
        "sampled": average(sampled, log_likelihood),
        "greedy": average(by_greedy, by_greedy.log_likelihood[0]),
        "best": jax.tree.map(lambda x: x[best], both),
    }


def _outcome(
    world: World, policy: Policy, held_out: Demonstrations, key: PRNGKey, num_episodes: int
) -> Outcome:
    log_probs = step_log_probs(policy, held_out)
    choice_return, clone_return = two_returns(world, policy, key, num_episodes)
    return Outcome(
        clone_return,
        choice_return,
        jnp.mean(jnp.exp(log_probs)),
        jnp.mean(jnp.maximum(log_probs, jnp.log(LEAST_PROB))),
    )


def step_log_probs(policy: Policy, demonstrations: Demonstrations) -> Float[Array, " N"]:
    """Log π(a_t|·) of every demonstrated step; what is remembered is that of its episode."""

    def step(carry, transition):
        begin, observation, last_action, action = transition
        start = policy.initial_carry()
        carry = jax.tree.map(lambda new, old: jnp.where(begin, new, old), start, carry)
        carry, acts = policy(carry, observation, last_action)
        return carry, acts.log_prob(action)

    steps = (
        episodes.begins(demonstrations),
        demonstrations.observation,
        episodes.last_actions(demonstrations),
        demonstrations.action,
    )
    if remembers(policy):
        return jax.lax.scan(step, policy.initial_carry(), steps)[1]
    return jax.vmap(lambda *transition: step((), transition)[1])(*steps)
