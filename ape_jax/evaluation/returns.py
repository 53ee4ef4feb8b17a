"""Returns of policies and ensembles: exact where the environment is a finite MDP, else sampled."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ape_jax.algorithms.task import Task
from ape_jax.core import tabular
from ape_jax.core.policies import greedy, remembers, tabulate
from ape_jax.envs import rollout
from ape_jax.envs.world import World
from ape_jax.networks import HeadPolicy, MixturePolicy, UniformWeights
from ape_jax.types import Params, Policy, PRNGKey

NUM_EPISODES = 1024

BATCH_SIZE = 256


class EnsembleReturns(NamedTuple):
    """Undiscounted returns of one ensemble."""

    experts: Float[Array, " E"]
    greedy_experts: Float[Array, " E"]
    mixture: Float[Array, ""]

    @property
    def pe(self) -> Float[Array, "..."]:
        """J(PE): the mean over experts, also of returns with leading axes."""
        return jnp.mean(self.experts, axis=-1)


def policy_table(policy: Policy, num_states: int) -> Float[Array, "S A"]:
    """Probabilities of a policy over a finite observation space."""
    return jnp.exp(tabulate(policy, num_states).table.log_probs)


def expected_return(
    world: World, policy: Policy, key: PRNGKey, num_episodes: int = NUM_EPISODES
) -> Float[Array, ""]:
    """Undiscounted return of a policy.

    It is exact where the environment is a finite MDP and the policy remembers nothing, and the mean
    of sampled episodes otherwise. The key must never be a training key.
    """
    if world.mdp is not None and not remembers(policy):
        return tabular.policy_return(world.mdp, policy_table(policy, world.mdp.num_states))
    return jnp.mean(sampled_returns(world, policy, key, num_episodes))


def two_returns(
    world: World, policy: Policy, key: PRNGKey, num_episodes: int = NUM_EPISODES
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Undiscounted returns of a policy from two sets of episodes, half of the number each.

    What is chosen by the first is scored by the second. Exact returns are the same twice.
    """
    if world.mdp is not None and not remembers(policy):
        exact = expected_return(world, policy, key)
        return exact, exact
    halves = sampled_returns(world, policy, key, num_episodes).reshape(2, -1)
    first, second = jnp.mean(halves, axis=1)
    return first, second


def sampled_returns(
    world: World, policy: Policy, key: PRNGKey, num_episodes: int = NUM_EPISODES
) -> Float[Array, " N"]:
    """Undiscounted returns of single episodes of a policy.

    Their number is rounded up to a multiple of 256 where it is larger.
    """
    shape = (-(-num_episodes // BATCH_SIZE), min(num_episodes, BATCH_SIZE))
    keys = jax.random.split(key, shape)
    sampled = jax.lax.map(lambda batch: rollout.episode_returns(batch, policy, world), keys)
    return sampled.reshape(-1)


def ensemble_returns(
    task: Task, heads: Params, key: PRNGKey, num_episodes: int = NUM_EPISODES
) -> EnsembleReturns:
    """Returns of each expert [E, …], of each greedy expert and of the uniform mixture."""
    networks = task.networks
    key_experts, key_greedy, key_mixture = jax.random.split(key, 3)

    def of_each(key, deployed):
        def of_expert(policy, key):
            return expected_return(task.world, deployed(policy), key, num_episodes)

        keys = jax.random.split(key, networks.num_experts)
        return jax.vmap(of_expert)(HeadPolicy(heads, networks), keys)

    mixture = MixturePolicy(heads, networks, UniformWeights(networks.num_experts))
    return EnsembleReturns(
        experts=of_each(key_experts, lambda policy: policy),
        greedy_experts=of_each(key_greedy, greedy),
        mixture=expected_return(task.world, mixture, key_mixture, num_episodes),
    )


class Spread(NamedTuple):
    """Mean and standard deviation of the returns of episodes."""

    mean: float
    std: float


def random_return(world: World, key: PRNGKey, num_episodes: int = NUM_EPISODES) -> Spread:
    """Sampled returns of a uniformly random policy."""
    sampled = sampled_returns(world, world.random_policy(), key, num_episodes)
    returns = np.asarray(sampled, np.float64)
    return Spread(float(returns.mean()), float(returns.std()))


COLLAPSE_SHARE = 0.5
"""An expert with less than this share of the best expert's return above random has collapsed."""


def collapsed_experts(
    expert_returns: Float[np.ndarray, "K E"] | Float[Array, "K E"], at_random: Spread
) -> Bool[np.ndarray, "K E"]:
    """Experts that training sacrificed: less than half of the best one's return above random.

    None has collapsed where nobody learned anything, that is where the best expert is within one
    standard deviation of the random policy's episodes.
    """
    above = np.asarray(expert_returns, np.float64) - at_random.mean
    best = above.max(axis=-1, keepdims=True)
    return (best > at_random.std) & (above < COLLAPSE_SHARE * best)
