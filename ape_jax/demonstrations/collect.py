"""Demonstrations: what an observer gets to see of an ensemble."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from ape_jax.algorithms.task import Task
from ape_jax.core.distributions import Sampler
from ape_jax.envs import rollout
from ape_jax.envs.world import World
from ape_jax.types import Params, PRNGKey

ActFn = Callable[[Shaped[Array, "..."], Int[Array, ""]], Sampler]
"""Several policies: one observation and the number of a policy to what its action is drawn from."""


class Demonstrations(NamedTuple):
    """Pooled steps of an ensemble, episode after episode."""

    observation: Shaped[Array, "N ..."]
    """The observation before the action."""
    action: Shaped[Array, "N ..."]
    """The action as the environment was given it."""
    reward: Float[Array, " N"]
    terminated: Bool[Array, " N"]
    """The task ended with this step."""
    truncated: Bool[Array, " N"]
    """The time limit cut the episode after this step."""
    episode: Int[Array, " N"]
    """Number of the episode, rising. The last one of each parallel environment may be cut short,
    with neither end marked."""


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
    act = expert_policies(task, heads)
    return pool(key, task.world, act, task.networks.num_experts, num_steps)


def expert_policies(task: Task, heads: Params) -> ActFn:
    """The policies of the expert heads [E, …] by number, ready to be sampled."""
    # All heads' outputs and then one of them: parallel environments would copy a head for each.
    all_heads = task.networks.tabulate(
        lambda x: task.networks.distributions(heads, x).for_sampling()
    )
    return lambda x, expert: jax.tree.map(lambda leaf: leaf[expert], all_heads(x))


def pool(
    key: PRNGKey, world: World, act: ActFn, num_experts: int, num_steps: int
) -> tuple[Demonstrations, Int[Array, " N"]]:
    """Exactly N steps, and the policy that acted in each; a policy is drawn for each episode.

    Parallel environments make the steps, and their episodes are laid end to end.
    """
    # Few enough environments that each holds many episodes and cuts only one short.
    num_envs = max(1, min(1024, num_steps // (10 * world.horizon)))
    length = -(-num_steps // num_envs)
    keys = jax.random.split(key, num_envs)
    steps = rollout.stream(keys, act, num_experts, world, length)
    steps, actor = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), steps)
    ends = steps.terminated | steps.truncated
    begins = jnp.concatenate([jnp.ones((num_envs, 1), bool), ends[:, :-1]], axis=1)

    def flat(x):
        return x.reshape(-1, *x.shape[2:])[:num_steps]

    fields = {name: flat(getattr(steps, name)) for name in Demonstrations._fields[:-1]}
    return Demonstrations(**fields, episode=jnp.cumsum(flat(begins)) - 1), flat(actor)


def complete_returns(shown: Demonstrations) -> np.ndarray:
    """Undiscounted returns of the episodes whose end is marked."""
    episode = np.asarray(shown.episode)
    returns = np.bincount(episode, np.asarray(shown.reward, np.float64))
    ends = np.asarray(shown.terminated) | np.asarray(shown.truncated)
    return returns[np.bincount(episode, ends) > 0]


def hold_out(shown: Demonstrations) -> tuple[Demonstrations, Demonstrations]:
    """Split off the last tenth of the episodes, at least one; a single episode goes to both parts.

    The first part is given to an observer, and the second is kept back.
    """
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
    """Draw episodes with replacement, for as many steps as there were; the last one may be cut.

    Every tenth place is filled with one of every tenth episodes, and the other places with the
    other episodes. So no episode is both held out (``fitting.held_out``) and fitted to.
    """
    episode = np.asarray(shown.episode)
    num_steps = len(episode)
    begins = np.searchsorted(episode, np.arange(episode[-1] + 2))
    generator = np.random.default_rng(seed)
    tenth = np.arange(len(begins) - 1) % 10 == 5
    sources = {part: np.flatnonzero(tenth == part) for part in (False, True)}
    rows: list[np.ndarray] = []
    total = 0
    while total < num_steps:
        source = sources[len(rows) % 10 == 5]
        drawn = generator.choice(source if len(source) else len(begins) - 1)
        rows.append(np.arange(begins[drawn], begins[drawn + 1])[: num_steps - total])
        total += len(rows[-1])
    picked = jax.tree.map(lambda x: jnp.asarray(x)[np.concatenate(rows)], shown)
    numbers = np.repeat(np.arange(len(rows)), [len(steps) for steps in rows])
    return picked._replace(episode=jnp.asarray(numbers, jnp.int32))
