"""Demonstrations: what an observer gets to see of an ensemble."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from ape_jax import rollout
from ape_jax.core import categorical
from ape_jax.learner import Task
from ape_jax.types import Params, PRNGKey


class Demonstrations(NamedTuple):
    """Pooled steps of an ensemble, episode after episode."""

    observation: Shaped[Array, "N ..."]
    action: Int[Array, " N"]
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
    networks = task.networks
    policies = networks.tabulate(
        lambda observation: jax.vmap(categorical.cumulative_probs)(
            networks.expert_log_probs(heads, observation)
        )
    )
    streams = num_streams(num_steps, task.num_steps)
    length = -(-num_steps // streams)

    def one(key):
        return rollout.stream(key, policies, task.env, task.env_params, length)

    steps, expert = jax.vmap(one)(jax.random.split(key, streams))
    ends = steps.terminated | steps.truncated
    begins = jnp.concatenate([jnp.ones((streams, 1), bool), ends[:, :-1]], axis=1)

    def pool(x):
        return x.reshape(-1, *x.shape[2:])[:num_steps]

    shown = Demonstrations(
        observation=pool(steps.observation),
        action=pool(steps.action),
        reward=pool(steps.reward),
        terminated=pool(steps.terminated),
        truncated=pool(steps.truncated),
        episode=jnp.cumsum(pool(begins)) - 1,
    )
    return shown, pool(expert)
