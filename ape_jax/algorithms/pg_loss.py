"""The losses of PG-APE on whole episodes: both terms, their critics, and the classifier."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from ape_jax.config import PGHypers
from ape_jax.core import objective
from ape_jax.core.distributions import HeadDistribution
from ape_jax.core.samples import Samples, aggregate_by_state_action, every_step
from ape_jax.networks import EnsembleParams, Networks, observer_policy
from ape_jax.types import LogWeightsFn, Params, Transition


def loss(
    params: EnsembleParams,
    networks: Networks,
    log_weights: LogWeightsFn,
    experts: Transition,
    observer: Transition,
    hypers: PGHypers,
    multipliers: Float[Array, " E"] | None = None,
) -> tuple[Float[Array, ""], tuple[objective.Loss, objective.Loss]]:
    """The PG-APE loss of episodes: both terms, each a mean over trajectories.

    Episodes of the experts are [T, E, B], and those of the observer [T, N]. In the constrained form
    the multipliers λ_c weight the two terms in place of β.

    Returns:
      The scalar loss, and the parts of each term.
    """

    def expert_block(head, critic, samples):
        policy = networks.tabulate(lambda o: networks.distribution(head, o))
        values = networks.tabulate(lambda o: networks.value(critic, o)[None])
        losses = jax.vmap(objective.expert_loss, in_axes=1)(loss_inputs(policy, values, samples))
        return jax.tree.map(jnp.mean, losses)

    expert_losses = jax.vmap(expert_block, in_axes=(0, 0, 1))(
        params.heads, params.expert_critics, samples_of(networks, experts, hypers.gamma)
    )
    beta: Float[Array, ""] | float = hypers.beta
    if multipliers is not None:
        weights, beta = objective.dual_weights(multipliers)
        expert_losses = expert_losses._replace(policy=weights * expert_losses.policy)
    acts = observer_policy(networks, params.heads, log_weights, hypers.temperature)
    policy = networks.tabulate(lambda o: acts((), o, None)[1])
    values = networks.tabulate(lambda o: networks.observer_values(params, o))
    one_block = jax.tree.map(lambda x: x[:, None], observer)
    samples = jax.tree.map(lambda x: x[:, 0], samples_of(networks, one_block, hypers.gamma))
    observer_losses = jax.vmap(objective.observer_loss, in_axes=(1, None))(
        loss_inputs(policy, values, samples), beta
    )
    expert, clone = jax.tree.map(jnp.mean, (expert_losses, observer_losses))
    return total_loss(expert, clone, hypers), (expert, clone)


def total_loss(
    expert: objective.Loss, observer: objective.Loss, hypers: PGHypers
) -> Float[Array, ""]:
    """The sum of both terms, each already averaged over its trajectories."""
    losses = expert.policy + expert.value + observer.policy + observer.value
    return losses - hypers.ent_coef * expert.entropy


def classifier_loss(
    classifier: Params, networks: Networks, experts: Transition
) -> Float[Array, ""]:
    """Cross-entropy of q(c|s) on the states that experts visit; its minimum is the posterior.

    It is summed over time and averaged over the trajectories [T, E, B], as the other losses are.
    """
    log_weights = networks.tabulate(lambda o: networks.expert_log_weights(classifier, o))

    def block(label, samples):
        terms = jax.vmap(jax.vmap(log_weights))(samples.observation)[..., label]
        return -jnp.mean(jnp.sum(samples.weights * terms, axis=0))

    samples = samples_of(networks, experts, 1.0)
    return jnp.mean(jax.vmap(block, in_axes=(0, 1))(jnp.arange(networks.num_experts), samples))


def samples_of(
    networks: Networks, episodes: Transition, gamma: Float[Array, ""] | float
) -> Samples:
    """Samples of episodes [T, G, N], aggregated by state and action where states are finite."""
    steps = every_step(episodes, gamma)
    if networks.num_states is None:
        return steps
    return aggregate_by_state_action(steps, networks.num_states, networks.num_actions)


def loss_inputs(
    policy: Callable[[Shaped[Array, "..."]], HeadDistribution],
    values: Callable[[Shaped[Array, "..."]], Float[Array, " V"]],
    samples: Samples,
) -> objective.LossInputs:
    """Inputs of the losses for samples [T, N], under one policy and its critics."""
    assert samples.variances is not None
    assert samples.weights is not None

    def at_sample(observation, action):
        distribution = policy(observation)
        return distribution.log_prob(action), distribution.entropy(), values(observation)

    log_probs, entropies, columns = jax.vmap(jax.vmap(at_sample))(
        samples.observation, samples.action
    )
    return objective.LossInputs(
        log_probs, columns, entropies, samples.returns, samples.variances, samples.weights
    )
