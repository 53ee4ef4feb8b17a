"""Returns of policies and ensembles: exact where the environment is a finite MDP, else sampled."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from ape_jax.algorithms.task import Task
from ape_jax.core import categorical, mixture, tabular
from ape_jax.core.distributions import Gaussian, GaussianMixture
from ape_jax.envs import rollout
from ape_jax.observers.mixture import MixturePolicy
from ape_jax.types import MemoryPolicy, Params, PRNGKey

NUM_EPISODES = 1024
"""Fresh episodes behind each sampled return."""


class EnsembleReturns(NamedTuple):
    """Undiscounted returns of one ensemble."""

    experts: Float[Array, " E"]
    """Each expert, sampling its actions."""
    greedy_experts: Float[Array, " E"]
    """Each expert, taking its most probable action."""
    mixture: Float[Array, ""]
    """The uniform mixture of the paper, sampling."""

    @property
    def pe(self) -> Float[Array, "..."]:
        """J(PE): the mean over experts, also of returns with leading axes."""
        return jnp.mean(self.experts, axis=-1)


def tempered(policy: Any, temperature: Float[Array, ""] | float) -> Any:
    """The same policy, with memory or without, deployed at a temperature."""
    if isinstance(policy, MemoryPolicy):
        return TemperedMemory(policy, temperature)

    def deployed(observation):
        acts = policy(observation)
        if isinstance(acts, Gaussian | GaussianMixture):
            return acts.temper(temperature)
        return mixture.temper(acts, temperature)

    return deployed


def greedy(policy: Any) -> Any:
    """The same policy, deployed greedily; ties are shared evenly."""
    return tempered(policy, 0.0)


class TemperedMemory(NamedTuple):
    """A policy with memory, deployed at a temperature."""

    policy: MemoryPolicy
    """Whose log-probabilities are tempered."""
    temperature: Float[Array, ""] | float
    """Near 0 is greedy."""

    def start(self) -> Any:
        """The memory before an episode."""
        return self.policy.start()

    def __call__(self, memory, observation, last_action) -> tuple[Any, Float[Array, " A"]]:
        """The next memory, and log-probabilities."""
        memory, log_probs = self.policy(memory, observation, last_action)
        return memory, mixture.temper(log_probs, self.temperature)


def policy_table(policy: Any, num_states: int) -> Float[Array, "S A"]:
    """Probabilities of a policy over a finite observation space."""
    return jnp.exp(jax.vmap(policy)(jnp.arange(num_states)))


def expected_return(
    task: Task, policy: Any, key: PRNGKey, num_episodes: int = NUM_EPISODES
) -> Float[Array, ""]:
    """Return of a policy in the task's environment.

    Args:
      task: environment and networks.
      policy: an observation to log-probabilities, or to a distribution of continuous actions; or
        one with memory, which is always sampled.
      key: for sampled evaluation; a key of its own, never a training key.
      num_episodes: of it.
    """
    world = (task.world.env, task.world.params, task.world.horizon)
    if isinstance(policy, MemoryPolicy):

        def remembering(keys):
            return jnp.sum(rollout.episodes_with_memory(keys, policy, *world).reward, axis=0)

        return jnp.mean(_in_batches(remembering, key, num_episodes))
    if task.world.mdp is not None:
        return tabular.policy_return(
            task.world.mdp, policy_table(policy, task.world.mdp.num_states)
        )
    return jnp.mean(sampled_returns(task, policy, key, num_episodes))


def sampled_returns(
    task: Task, policy: Any, key: PRNGKey, num_episodes: int = NUM_EPISODES
) -> Float[Array, " N"]:
    """Returns of episodes of a policy without memory, a multiple of 256 where they are more.

    Args:
      task: environment and networks.
      policy: as in ``expected_return``.
      key: likewise.
      num_episodes: how many, at least.
    """
    networks = task.networks
    if networks.action_bounds is None:
        cumulative = networks.tabulate(lambda o: categorical.cumulative_probs(policy(o)))

        def act(observation, uniforms):
            return categorical.sample(cumulative(observation), uniforms[0])
    else:

        def act(observation, uniforms):
            return networks.legal(policy(observation).sample(uniforms))

    def acting(keys):
        return rollout.episode_returns(
            *(keys, jax.vmap(act), task.world.env, task.world.params, task.world.horizon),
            networks.num_uniforms,
        )

    return _in_batches(acting, key, num_episodes)


def _in_batches(
    returns: Callable[[Key[Array, " N"]], Float[Array, " N"]], key: PRNGKey, num_episodes: int
) -> Float[Array, " N"]:
    keys = jax.random.split(key, (-(-num_episodes // 256), min(num_episodes, 256)))
    return jax.lax.map(returns, keys).reshape(-1)


def ensemble_returns(
    task: Task, heads: Params, key: PRNGKey, num_episodes: int = NUM_EPISODES
) -> EnsembleReturns:
    """Returns of each expert, each greedy expert and the uniform mixture.

    Args:
      task: environment and networks.
      heads: parameters of the expert heads [E, …].
      key: for sampled evaluation.
      num_episodes: of it, of each policy.
    """
    networks = task.networks
    key_experts, key_greedy, key_mixture = jax.random.split(key, 3)

    def expert(head, key, deployed):
        policy = networks.policy if networks.action_bounds else networks.log_probs
        acting = deployed(lambda observation: policy(head, observation))
        return expected_return(task, acting, key, num_episodes)

    def each(key, deployed):
        keys = jax.random.split(key, networks.num_experts)
        return jax.vmap(lambda head, key: expert(head, key, deployed))(heads, keys)

    return EnsembleReturns(
        experts=each(key_experts, lambda policy: policy),
        greedy_experts=each(key_greedy, greedy),
        mixture=expected_return(task, MixturePolicy(heads, networks), key_mixture, num_episodes),
    )


def random_policy(task: Task) -> Callable:
    """Uniformly random discrete actions; continuous ones from N(0, 1) in halves of their range."""
    networks = task.networks
    if networks.action_bounds is None:
        return lambda _: jnp.full(networks.num_actions, -jnp.log(networks.num_actions))
    low, high = jnp.asarray(networks.action_bounds)
    return lambda _: Gaussian(0.5 * (low + high), jnp.log(0.5 * (high - low)))


LEAST_SHARE = 0.5
"""Of the best expert's return above a random policy's: who gets less is dead."""


class Spread(NamedTuple):
    """Of the returns of episodes."""

    mean: float
    """Over episodes."""
    std: float
    """Standard deviation over episodes."""


def random_return(task: Task, key: PRNGKey, num_episodes: int = NUM_EPISODES) -> Spread:
    """Of a uniformly random policy, sampled."""
    returns = np.asarray(sampled_returns(task, random_policy(task), key, num_episodes), np.float64)
    return Spread(float(returns.mean()), float(returns.std()))


def dead_experts(
    expert_returns: Float[np.ndarray, "K E"] | Float[Array, "K E"], at_random: Spread
) -> Bool[np.ndarray, "K E"]:
    """Experts that training sacrificed: less than half of the best one's return above random.

    None is dead where nobody learned anything: where the best is within one standard deviation of
    the random policy's episodes.

    Args:
      expert_returns: of every seed's ensemble.
      at_random: returns of a uniformly random policy.
    """
    above = np.asarray(expert_returns, np.float64) - at_random.mean
    best = above.max(axis=-1, keepdims=True)
    return (best > at_random.std) & (above < LEAST_SHARE * best)
