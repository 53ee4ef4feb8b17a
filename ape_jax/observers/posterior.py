"""The ideal sampling cloner: the mixture weighed by who goes where, p(c|s)."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Shaped

from ape_jax.algorithms.task import Task
from ape_jax.core import mixture, tabular
from ape_jax.demonstrations import collect
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.networks import MLP, Networks
from ape_jax.observers import fitting
from ape_jax.observers.mixture import mixed
from ape_jax.observers.policies import TablePolicy
from ape_jax.types import Params, PRNGKey


@struct.dataclass
class ClassifiedMixture:
    """The mixture of heads [E, …], weighed by a classifier of the expert given the observation."""

    heads: Params
    """Parameters of the experts, stacked."""
    classifier: Params
    """Parameters of the classifier q(c|s)."""
    networks: Networks = struct.field(pytree_node=False)
    """The experts' modules."""
    module: nn.Module = struct.field(pytree_node=False)
    """The classifier."""

    def log_weights(self, observation: Shaped[Array, "..."]) -> Float[Array, " E"]:
        """The classifier's log q(c|observation)."""
        return jax.nn.log_softmax(jnp.asarray(self.module.apply(self.classifier, observation)))

    def __call__(self, observation: Shaped[Array, "..."]) -> Any:
        """Log-probabilities at one observation, or the mixture of Gaussians."""
        return mixed(self.networks, self.heads, observation, self.log_weights(observation))


@dataclasses.dataclass(frozen=True)
class Posterior:
    """A yardstick: what any cloner converges to that is a function of the observation alone.

    It looks inside the ensemble. On a finite MDP the weights are exact; elsewhere a classifier
    learns them from ``num_steps`` steps of its own, of which it is told who acted.
    """

    task: Task
    """Environment, horizon and networks of the ensemble."""
    heads: Params
    """Parameters of the experts, stacked."""
    num_steps: int = 100_000
    """Steps, with their experts, that the classifier is fitted to."""
    num_updates: int = 1000
    """Of the classifier."""
    batch_size: int = 1024
    """Steps in each of them."""
    hidden_size: int = 64
    """Hidden units of the classifier."""
    learning_rate: float = 3e-3
    """Adam step."""

    def fit(
        self, key: PRNGKey, demonstrations: Demonstrations | None
    ) -> TablePolicy | ClassifiedMixture:
        """The weighed mixture, whatever the demonstrations."""
        del demonstrations
        if self.task.world.mdp is not None:
            return exact_posterior(self.task.world.mdp, self.task.networks, self.heads)
        key_steps, key_init, key_rows, key_updates = jax.random.split(key, 4)
        steps, expert = collect.collect(key_steps, self.task, self.heads, self.num_steps)
        networks = self.task.networks
        module = MLP(
            *(networks.num_experts, (self.hidden_size,), "tanh", networks.num_states),
            scale=0.0,
            normalize=networks.num_states is None,
        )
        kept = fitting.held_out(steps)
        shown, kept = fitting.either(~kept), fitting.either(kept)

        def cross_entropy(params: Params, key: PRNGKey, weights: Float[Array, " N"]):
            rows = fitting.draw(key, weights, self.batch_size)
            logits = jax.vmap(module.apply, (None, 0))(params, steps.observation[rows])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, expert[rows])
            return jnp.mean(losses)

        classifier = fitting.descend(
            key_updates,
            fitting.standardize(module.init(key_init, steps.observation[0]), steps),
            lambda params, key: cross_entropy(params, key, shown),
            lambda params: cross_entropy(params, key_rows, kept),
            self.num_updates,
            self.learning_rate,
        )
        return ClassifiedMixture(self.heads, classifier, networks, module)


def exact_posterior(mdp: tabular.FiniteMDP, networks: Networks, heads: Params) -> TablePolicy:
    """The mixture Σ_c w_c(s) π_c(a|s) with w_c(s) = d_c(s) / Σ_k d_k(s), d the occupancies."""
    log_probs = networks.tabulate_experts(heads)
    log_weights = tabular.observer_weights(mdp, jnp.exp(log_probs), "posterior")
    return TablePolicy(jax.vmap(mixture.mixture_log_probs, (1, 0))(log_probs, log_weights))
