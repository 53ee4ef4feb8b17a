"""What the clone of one observer gets, in every way of deploying it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ape_jax.algorithms.task import Task
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.evaluation import returns as evaluation
from ape_jax.observers import Modes
from ape_jax.observers.latent import episode_log_probs
from ape_jax.types import MemoryPolicy, PRNGKey

DEPLOYMENTS = ("sampled", "tempered", "greedy", "best")
"""How a clone acts, in the order of tables."""

TEMPERATURE = 0.5
"""Of the tempered deployment."""

LEAST_PROB = 1e-6
"""Probabilities below it count as this much in a log-likelihood: a clone by counting has zeros."""

LEAST_SHARE = 0.02
"""A mode with fewer of the episodes is not tried for the best one."""


class Outcome(NamedTuple):
    """Of one deployment of a clone."""

    clone_return: Float[Array, "..."]
    """Expected return of the clone."""
    agreement: Float[Array, "..."]
    """Probability of the action that a demonstrator took, mean over held-out steps."""
    log_likelihood: Float[Array, "..."] | None
    """Mean log-probability of held-out actions, in nats a step; of the sampled clone alone."""


def deploy(task: Task, policy: Any, held_out: Demonstrations, key: PRNGKey) -> dict[str, Outcome]:
    """What a fitted policy gets, in each of the ways in which it may be deployed.

    Args:
      task: environment.
      policy: a policy of the observation, one with memory, or several modes.
      held_out: demonstrations that it did not see.
      key: for sampled evaluation.
    """
    if isinstance(policy, Modes):
        return _deploy_modes(task, policy, held_out, key)
    outcomes = {
        "sampled": _outcome(task, policy, held_out, key),
        "greedy": _outcome(task, evaluation.greedy(policy), held_out, key),
        "tempered": _outcome(task, evaluation.tempered(policy, TEMPERATURE), held_out, key),
    }
    return {
        name: outcome if name == "sampled" else outcome._replace(log_likelihood=None)
        for name, outcome in outcomes.items()
    }


def _deploy_modes(
    task: Task, modes: Modes, held_out: Demonstrations, key: PRNGKey
) -> dict[str, Outcome]:
    """A mode drawn for each episode; and the best of all that can be tried in the environment."""

    def each(deployed):
        return jax.vmap(lambda policy: _outcome(task, deployed(policy), held_out, key))(
            modes.policies
        )

    sampled, greedy = each(lambda policy: policy), each(evaluation.greedy)
    log_probs = jax.vmap(lambda policy: step_log_probs(policy, held_out))(modes.policies)
    joint = episode_log_probs(
        jnp.maximum(log_probs, jnp.log(LEAST_PROB)).T, held_out, log_probs.shape[1]
    )
    log_shares = jnp.log(jnp.maximum(modes.shares, 1e-30))
    log_likelihood = jnp.sum(jax.nn.logsumexp(joint + log_shares[None], axis=-1)) / len(joint)

    both = jax.tree.map(lambda *x: jnp.concatenate(x), sampled, greedy)
    tried = jnp.tile(modes.shares >= LEAST_SHARE, 2)
    best = jnp.argmax(jnp.where(tried, both.clone_return, -jnp.inf))
    # Scored afresh: the highest of noisy returns is too high.
    policy = jax.tree.map(lambda x: x[best % len(modes.shares)], modes.policies)
    temperature = jnp.where(best < len(modes.shares), 1.0, 0.0)
    best_return = evaluation.expected_return(
        task, evaluation.tempered(policy, temperature), jax.random.fold_in(key, 1)
    )

    def average(outcome, log_likelihood=None):
        return Outcome(
            modes.shares @ outcome.clone_return, modes.shares @ outcome.agreement, log_likelihood
        )

    return {
        "sampled": average(sampled, log_likelihood),
        "greedy": average(greedy),
        "best": Outcome(best_return, both.agreement[best], None),
    }


def _outcome(task: Task, policy, held_out: Demonstrations, key: PRNGKey) -> Outcome:
    log_probs = step_log_probs(policy, held_out)
    return Outcome(
        evaluation.expected_return(task, policy, key),
        jnp.mean(jnp.exp(log_probs)),
        jnp.mean(jnp.maximum(log_probs, jnp.log(LEAST_PROB))),
    )


def step_log_probs(policy, demonstrations: Demonstrations) -> Float[Array, " N"]:
    """Of every demonstrated step, log π(a_t|·); memory is that of its episode."""
    begins = jnp.diff(demonstrations.episode, prepend=-1) != 0
    if not isinstance(policy, MemoryPolicy):
        log_probs = jax.vmap(policy)(demonstrations.observation)
        return jnp.take_along_axis(log_probs, demonstrations.action[:, None], axis=-1)[:, 0]
    last = jnp.where(begins, -1, jnp.roll(demonstrations.action, 1))

    def step(memory, seen):
        begin, observation, last_action, action = seen
        memory = jax.tree.map(lambda new, old: jnp.where(begin, new, old), policy.start(), memory)
        memory, log_probs = policy(memory, observation, last_action)
        return memory, log_probs[action]

    steps = (begins, demonstrations.observation, last, demonstrations.action)
    return jax.lax.scan(step, policy.start(), steps)[1]
