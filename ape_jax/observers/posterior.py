"""Two yardsticks that look inside the ensemble: the uniform and the posterior mixture."""

import dataclasses

import jax
import jax.numpy as jnp

from ape_jax.algorithms.task import Task
from ape_jax.core import mixture, tabular
from ape_jax.core.distributions import Categorical
from ape_jax.core.policies import TablePolicy
from ape_jax.demonstrations import collect
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.networks import MLP, LearnedWeights, MixturePolicy, Networks, UniformWeights
from ape_jax.observers.fitting import Training
from ape_jax.types import Params, PRNGKey


@dataclasses.dataclass(frozen=True)
class Mixture:
    """The paper's π_o: the uniform mixture of the experts, known exactly instead of cloned.

    It overstates protection. Real demonstrations show each expert where that expert goes, so a
    cloner weighs the experts by p(c|s), not evenly.
    """

    networks: Networks
    heads: Params
    """Parameters of the experts, stacked [E, …]."""

    def fit(self, key: PRNGKey, demonstrations: Demonstrations | None) -> MixturePolicy:
        """The mixture, whatever the demonstrations."""
        del key, demonstrations
        return MixturePolicy(self.heads, self.networks, UniformWeights(self.networks.num_experts))


@dataclasses.dataclass(frozen=True)
class Posterior(Training):
    """The mixture of the experts weighed by who goes where, p(c|s): the ideal sampling cloner.

    Any cloner whose policy depends on the observation alone converges to it. On a finite MDP the
    weights are exact. Elsewhere a classifier learns them from ``num_steps`` steps of its own, and
    is told which expert acted in each.
    """

    task: Task
    heads: Params
    """Parameters of the experts, stacked [E, …]."""
    num_steps: int = 100_000
    """Steps that the classifier is fitted to."""
    hidden_size: int = 64
    """Hidden units of the classifier."""
    _: dataclasses.KW_ONLY
    num_updates: int = 1000

    def fit(
        self, key: PRNGKey, demonstrations: Demonstrations | None
    ) -> TablePolicy | MixturePolicy:
        """The weighed mixture, whatever the demonstrations."""
        del demonstrations
        networks, mdp = self.task.networks, self.task.world.mdp
        if mdp is not None:
            return exact_posterior(mdp, networks, self.heads)
        key_steps, *keys = jax.random.split(key, 4)
        steps, expert = collect.collect(key_steps, self.task, self.heads, self.num_steps)
        states, hidden_sizes = networks.num_states, (self.hidden_size,)
        shape, axes = (networks.num_experts, hidden_sizes), len(networks.observation_shape)
        module = MLP(*shape, "tanh", states, 0.0, states is None, axes)

        def cross_entropy(params, observation, expert):
            return -Categorical(LearnedWeights(params, module)(observation)).log_prob(expert)

        labelled = steps._replace(action=expert)
        classifier = self.fit_samples(keys, module.init, cross_entropy, labelled)
        return MixturePolicy(self.heads, networks, LearnedWeights(classifier, module))


def exact_posterior(mdp: tabular.FiniteMDP, networks: Networks, heads: Params) -> TablePolicy:
    """The mixture Σ_c w_c(s) π_c(a|s) with w_c(s) = d_c(s) / Σ_k d_k(s), d the occupancies."""
    log_probs = networks.tabulate_experts(heads)
    log_weights = tabular.observer_weights(mdp, jnp.exp(log_probs), "posterior")
    return TablePolicy(
        Categorical(jax.vmap(mixture.mixture_log_probs, (1, 0))(log_probs, log_weights))
    )
