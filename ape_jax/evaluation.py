"""Returns of policies and ensembles: exact where the environment is a finite MDP, else sampled."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ape_jax import rollout
from ape_jax.core import categorical, mixture, tabular
from ape_jax.learner import Task
from ape_jax.observers.mixture import MixturePolicy
from ape_jax.types import LogProbsFn, Params, PRNGKey

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


def greedy(policy: LogProbsFn) -> LogProbsFn:
    """The same policy, deployed greedily; ties are shared evenly."""
    return lambda observation: mixture.temper(policy(observation), 0.0)


def policy_table(policy: LogProbsFn, num_states: int) -> Float[Array, "S A"]:
    """Probabilities of a policy over a finite observation space."""
    return jnp.exp(jax.vmap(policy)(jnp.arange(num_states)))


def expected_return(task: Task, policy: LogProbsFn, key: PRNGKey) -> Float[Array, ""]:
    """Return of a policy in the task's environment.

    Args:
      task: environment and networks.
      policy: an observation to log-probabilities.
      key: for sampled evaluation; a key of its own, never a training key.
    """
    if task.mdp is not None:
        return tabular.policy_return(task.mdp, policy_table(policy, task.mdp.num_states))
    cumulative = task.networks.tabulate(lambda o: categorical.cumulative_probs(policy(o)))

    def one(key):
        episode = rollout.episode(key, cumulative, task.env, task.env_params, task.num_steps)
        return jnp.sum(episode.reward)

    return jnp.mean(jax.lax.map(one, jax.random.split(key, NUM_EPISODES), batch_size=256))


def ensemble_returns(task: Task, heads: Params, key: PRNGKey) -> EnsembleReturns:
    """Returns of each expert, each greedy expert and the uniform mixture.

    Args:
      task: environment and networks.
      heads: parameters of the expert heads [E, …].
      key: for sampled evaluation.
    """
    key_experts, key_greedy, key_mixture = jax.random.split(key, 3)

    def expert(head, key, deployed):
        policy = deployed(lambda observation: task.networks.log_probs(head, observation))
        return expected_return(task, policy, key)

    def each(key, deployed):
        keys = jax.random.split(key, task.networks.num_experts)
        return jax.vmap(lambda head, key: expert(head, key, deployed))(heads, keys)

    return EnsembleReturns(
        experts=each(key_experts, lambda policy: policy),
        greedy_experts=each(key_greedy, greedy),
        mixture=expected_return(task, MixturePolicy(heads, task.networks), key_mixture),
    )
