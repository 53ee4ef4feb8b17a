"""Demonstrations: what an observer gets to see of an ensemble."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from ape_jax.algorithms.task import Task
from ape_jax.core import categorical
from ape_jax.envs import rollout
from ape_jax.types import Params, PRNGKey

ActFn = Callable[[Shaped[Array, "..."], Int[Array, ""], Float[Array, " U"]], Shaped[Array, "..."]]
"""Several policies as a rollout samples them: observation, number of the policy, uniform numbers
to its action."""


class Demonstrations(NamedTuple):
    """Pooled steps of an ensemble, episode after episode."""

    observation: Shaped[Array, "N ..."]
    """What the actor saw before it acted."""
    action: Shaped[Array, "N ..."]
    """What it did."""
    reward: Float[Array, " N"]
    """What it got for that."""
    terminated: Bool[Array, " N"]
    """The task ended with this step."""
    truncated: Bool[Array, " N"]
    """The time limit cut the episode after this step."""
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
    return pool(key, task, sampler(task, heads), num_steps)


def sampler(task: Task, heads: Params) -> ActFn:
    """Experts that sample their actions, [E, …] heads by number."""
    networks = task.networks
    if networks.num_states is None:

        def act(observation, expert, uniforms):
            # All heads' outputs and then one of them: parallel streams would copy a head for each.
            policies = networks.policies(heads, observation)
            policy = jax.tree.map(lambda x: x[expert], policies)
            return networks.legal(policy.sample(uniforms))

        return act
    cumulative = networks.tabulate(
        lambda observation: jax.vmap(categorical.cumulative_probs)(
            networks.expert_log_probs(heads, observation)
        )
    )
    return lambda observation, expert, uniforms: categorical.sample(
        cumulative(observation)[expert], uniforms[0]
    )


def pool(
    key: PRNGKey, task: Task, act: ActFn, num_steps: int
) -> tuple[Demonstrations, Int[Array, " N"]]:
    """Episodes of E policies, one drawn for each episode, from parallel streams end to end.

    Args:
      key: drives everything.
      task: environment.
      act: how each of them acts.
      num_steps: N, exactly.
    """
    streams = num_streams(num_steps, task.world.horizon)
    length = -(-num_steps // streams)

    def one(key):
        return rollout.stream(
            *(key, act, task.networks.num_experts, task.world.env, task.world.params, length),
            task.networks.num_uniforms,
        )

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


def complete_returns(shown: Demonstrations) -> np.ndarray:
    """Undiscounted returns of the episodes whose end is marked."""
    episode = np.asarray(shown.episode)
    returns = np.bincount(episode, np.asarray(shown.reward, np.float64))
    ends = np.asarray(shown.terminated) | np.asarray(shown.truncated)
    return returns[np.bincount(episode, ends) > 0]


def hold_out(shown: Demonstrations) -> tuple[Demonstrations, Demonstrations]:
    """Set the last tenth of the episodes apart, one at least; of a single episode, both get it."""
    episode = np.asarray(shown.episode)
    num_episodes = episode[-1] + 1
    if num_episodes == 1:
        return shown, shown
    first_kept = num_episodes - max(1, num_episodes // 10)
    first_step = int(np.searchsorted(episode, first_kept))
    given = jax.tree.map(lambda x: x[:first_step], shown)
    kept = jax.tree.map(lambda x: x[first_step:], shown)
    return given, kept._replace(episode=kept.episode - first_kept)


def resample(shown: Demonstrations, seed: int) -> Demonstrations:
    """As many steps, of episodes drawn with replacement; the last is cut where steps run out.

    Every tenth place is filled from every tenth episode, and the others from the others, so that
    what a fit holds out (``fitting.held_out``) is not what it is fitted to.
    """
    episode = np.asarray(shown.episode)
    num_steps = len(episode)
    begins = np.searchsorted(episode, np.arange(episode[-1] + 2))
    generator = np.random.default_rng(seed)
    tenth = np.arange(len(begins) - 1) % 10 == 5
    sources = {part: np.flatnonzero(tenth == part) for part in (False, True)}
    rows: list[np.ndarray] = []
    numbers: list[np.ndarray] = []
    total = 0
    while total < num_steps:
        source = sources[len(numbers) % 10 == 5]
        drawn = generator.choice(source if len(source) else len(begins) - 1)
        steps = np.arange(begins[drawn], begins[drawn + 1])[: num_steps - total]
        rows.append(steps)
        numbers.append(np.full(len(steps), len(numbers)))
        total += len(steps)
    picked = jax.tree.map(lambda x: jnp.asarray(x)[np.concatenate(rows)], shown)
    return picked._replace(episode=jnp.asarray(np.concatenate(numbers), jnp.int32))
