"""Demonstrations: what an observer gets to see of an ensemble."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from ape_jax import rollout
from ape_jax.core import categorical
from ape_jax.learner import Task
from ape_jax.types import Params, PRNGKey

ManyCumulativeProbsFn = Callable[[Shaped[Array, "..."]], Float[Array, "E A"]]
"""Several policies as a rollout samples them: one observation to P(action ≤ a) of each."""


class Demonstrations(NamedTuple):
    """Pooled steps of an ensemble, episode after episode."""

    observation: Shaped[Array, "N ..."]
    action: Shaped[Array, "N ..."]
    reward: Float[Array, " N"]
    terminated: Bool[Array, " N"]
    truncated: Bool[Array, " N"]
    episode: Int[Array, " N"]
    """Number of the episode, rising. The last one of each parallel stream may be cut short, with
    neither end marked."""


def num_streams(num_steps: int, horizon: int) -> int:
    """Parallel streams that are long against an episode, so that few episodes are cut short."""
    return max(1, min(1024, num_steps // (10 * horizon)))


def collect(
    key: PRNGKey, task: Task, heads: Params, num_steps: int
) -> tuple[Demonstrations, Int[Array, " N"]]:
    """Sample demonstrations: a uniform draw of the expert for each episode, then its actions.

    Args:
      key: a key of its own, never a training key.
      task: environment and networks.
      heads: parameters of the expert heads [E, …].
      num_steps: N, exactly.

    Returns:
      What observers may see, and the expert that acted in each step, which stays hidden from them.
    """
    return pool(key, task, cumulative_probs(task, heads), num_steps)


def cumulative_probs(task: Task, heads: Params) -> ManyCumulativeProbsFn:
    """Every expert's P(action ≤ a), as rollouts sample it."""
    networks = task.networks
    return networks.tabulate(
        lambda observation: jax.vmap(categorical.cumulative_probs)(
            networks.expert_log_probs(heads, observation)
        )
    )


def pool(
    key: PRNGKey, task: Task, policies: ManyCumulativeProbsFn, num_steps: int
) -> tuple[Demonstrations, Int[Array, " N"]]:
    """Episodes of policies [E], one drawn for each episode, from parallel streams end to end.

    Args:
      key: drives everything.
      task: environment.
      policies: an observation to P(action ≤ a) of every policy [E, A].
      num_steps: N, exactly.
    """
    streams = num_streams(num_steps, task.num_steps)
    length = -(-num_steps // streams)

    def one(key):
        return rollout.stream(key, policies, task.env, task.env_params, length)

    steps, actor = jax.vmap(one)(jax.random.split(key, streams))
    ends = steps.terminated | steps.truncated
    begins = jnp.concatenate([jnp.ones((streams, 1), bool), ends[:, :-1]], axis=1)

    def flat(x):
        return x.reshape(-1, *x.shape[2:])[:num_steps]

    pooled = Demonstrations(
        observation=flat(steps.observation),
        action=flat(steps.action),
        reward=flat(steps.reward),
        terminated=flat(steps.terminated),
        truncated=flat(steps.truncated),
        episode=jnp.cumsum(flat(begins)) - 1,
    )
    return pooled, flat(actor)
