"""The losses of PG-APE on whole episodes: both terms, their critics, and the classifier."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from ape_jax.config import PGHypers
from ape_jax.core import objective, visits
from ape_jax.core.samples import every_step
from ape_jax.core.visits import Visits
from ape_jax.networks import EnsembleParams, Networks, observer_policy
from ape_jax.types import LogWeightsFn, Params, Transition

Episodes = Transition | Visits
"""Episodes of one policy [T, N], or of finite ones the visits [S, A]; stacked for several."""


def loss(
    params: EnsembleParams,
    networks: Networks,
    log_weights: LogWeightsFn,
    experts: Episodes,
    observer: Episodes,
    hypers: PGHypers,
    multipliers: Float[Array, " E"] | None = None,
) -> tuple[Float[Array, ""], tuple[objective.Loss, objective.Loss]]:
    """The PG-APE loss of episodes: both terms, each a mean over trajectories.

    Episodes of the experts are [T, E, B], and those of the observer [T, N]; or visits [E, S, A] and
    [S, A], where states are finite. In the constrained form the multipliers λ_c weight the two
    terms in place of β.

    Returns:
      The scalar loss, and the parts of each term.
    """

    def expert_losses(head, critic, episodes):
        def policy(observation):
            return networks.distribution(head, observation)

        def values(observation):
            return networks.value(critic, observation)[None]

        inputs = loss_inputs(networks, policy, values, episodes, hypers.gamma)
        return jax.tree.map(jnp.mean, jax.vmap(objective.expert_loss, in_axes=1)(inputs))

    expert = jax.vmap(expert_losses, in_axes=(0, 0, expert_axis(experts)))(
        params.heads, params.expert_critics, experts
    )
    beta: Float[Array, ""] | float = hypers.beta
    if multipliers is not None:
        weights, beta = objective.dual_weights(multipliers)
        expert = expert._replace(policy=weights * expert.policy)
    acts = observer_policy(networks, params.heads, log_weights, hypers.temperature)
    inputs = loss_inputs(
        networks,
        lambda o: acts((), o, None)[1],
        lambda o: networks.observer_values(params, o),
        observer,
        hypers.gamma,
    )
    clone = jax.vmap(objective.observer_loss, in_axes=(1, None))(inputs, beta)
    expert, clone = jax.tree.map(jnp.mean, (expert, clone))
    return total_loss(expert, clone, hypers), (expert, clone)


def total_loss(
    expert: objective.Loss, observer: objective.Loss, hypers: PGHypers
) -> Float[Array, ""]:
    """The sum of both terms, each already averaged over its trajectories."""
    losses = expert.policy + expert.value + observer.policy + observer.value
    return losses - hypers.ent_coef * expert.entropy


def classifier_loss(classifier: Params, networks: Networks, experts: Episodes) -> Float[Array, ""]:
    """Cross-entropy of q(c|s) on the states that experts visit; its minimum is the posterior.

    It is summed over time and averaged over the trajectories, as the other losses are.
    """

    def log_weights(observation):
        return networks.expert_log_weights(classifier, observation)

    def block(label, episodes):
        if networks.num_states is None:
            terms = jax.vmap(jax.vmap(log_weights))(episodes.observation)
            weights = episodes.mask / episodes.mask.shape[1]
        else:
            terms = jax.vmap(log_weights)(jnp.arange(networks.num_states, dtype=jnp.int32))
            weights = jnp.sum(_visits_of(networks, episodes, 1.0).counts, axis=-1)
        own = jnp.arange(networks.num_experts) == label
        return -jnp.sum(weights * jnp.sum(jnp.where(own, terms, 0.0), axis=-1))

    labels = jnp.arange(networks.num_experts)
    return jnp.mean(jax.vmap(block, in_axes=(0, expert_axis(experts)))(labels, experts))


def expert_axis(experts: Episodes) -> int:
    """The axis of experts: time comes first in episodes."""
    return 0 if isinstance(experts, Visits) else 1


def loss_inputs(
    networks: Networks,
    policy: Callable,
    values: Callable[[Shaped[Array, "..."]], Float[Array, " V"]],
    episodes: Episodes,
    gamma: Float[Array, ""] | float,
) -> objective.LossInputs:
    """Inputs of the losses, [T, N], for one policy and its critics.

    The policy maps an observation to the categorical distribution of the action.
    Where states are finite they are one trajectory [S A, 1] of all pairs of state and action, in
    which nothing has to be looked up.
    """
    if networks.num_states is not None:
        return _inputs_of_tables(networks, policy, values, _visits_of(networks, episodes, gamma))
    assert isinstance(episodes, Transition)

    def at_step(observation, action):
        distribution = policy(observation)
        return distribution.log_prob(action), distribution.entropy(), values(observation)

    log_probs, entropies, columns = jax.vmap(jax.vmap(at_step))(
        episodes.observation, episodes.action
    )
    return objective.LossInputs(
        log_probs=log_probs,
        values=columns,
        entropies=entropies,
        returns=every_step(episodes, gamma).returns,
        variances=jnp.zeros_like(episodes.reward),
        weights=episodes.mask.astype(jnp.float32),
    )


def _inputs_of_tables(networks, policy, values, pairs: Visits) -> objective.LossInputs:
    states = jnp.arange(networks.num_states, dtype=jnp.int32)
    distributions = jax.vmap(policy)(states)
    counts = jnp.where(pairs.counts > 0, pairs.counts, 1.0)
    returns = pairs.returns / counts

    def of_pairs(of_states):
        return jnp.repeat(of_states, networks.num_actions, axis=0)[:, None]

    return objective.LossInputs(
        log_probs=distributions.log_probs.reshape(-1, 1),
        values=of_pairs(jax.vmap(values)(states)),
        entropies=of_pairs(jax.vmap(lambda x: x.entropy())(distributions)),
        returns=returns.reshape(-1, 1),
        variances=jnp.maximum(pairs.squares / counts - returns**2, 0.0).reshape(-1, 1),
        weights=pairs.counts.reshape(-1, 1),
    )


def _visits_of(networks: Networks, episodes: Episodes, gamma) -> Visits:
    if isinstance(episodes, Visits):
        return episodes
    assert networks.num_states is not None
    return visits.of_one_policy(episodes, gamma, networks.num_states, networks.num_actions)
