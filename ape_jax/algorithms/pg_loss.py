"""The losses of PG-APE on whole episodes: both terms, their critics, and the classifier."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ape_jax.config import PGHypers
from ape_jax.core import objective, visits
from ape_jax.core.distributions import Categorical
from ape_jax.core.returns import discounted_returns
from ape_jax.core.visits import Visits
from ape_jax.networks import EnsembleParams, Networks, observer_policy, tabulate_ensemble
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
    inputs = _inputs_of_steps if networks.num_states is None else _inputs_of_tables
    own, others = inputs(params, networks, log_weights, experts, observer, hypers)
    of_trajectories = jax.vmap(objective.expert_loss, in_axes=1)
    expert = jax.tree.map(lambda x: jnp.mean(x, axis=-1), jax.vmap(of_trajectories)(own))
    beta: Float[Array, ""] | float = hypers.beta
    if multipliers is not None:
        weights, beta = objective.dual_weights(multipliers)
        expert = expert._replace(policy=weights * expert.policy)
    clone = jax.vmap(objective.observer_loss, in_axes=(1, None))(others, beta)
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
    num_experts = networks.num_experts
    if networks.num_states is None:
        assert isinstance(experts, Transition)
        at_steps = jax.vmap(
            jax.vmap(jax.vmap(networks.expert_log_weights, (None, 0)), (None, 0)), (None, 0)
        )
        log_weights = jnp.moveaxis(at_steps(classifier, experts.observation), 1, 0)
        weights = jnp.moveaxis(experts.mask / experts.mask.shape[-1], 1, 0)
    else:
        log_weights = networks.tabulate_log_weights(classifier)
        log_weights = jnp.broadcast_to(log_weights, (num_experts, *log_weights.shape))
        weights = jnp.sum(_visits_of(networks, experts, 1.0).counts, axis=-1)
    own = jnp.stack([log_weights[expert, ..., expert] for expert in range(num_experts)])
    return -jnp.sum(weights * own) / num_experts


def _inputs_of_steps(
    params: EnsembleParams,
    networks: Networks,
    log_weights: LogWeightsFn,
    experts: Episodes,
    observer: Episodes,
    hypers: PGHypers,
) -> tuple[objective.LossInputs, objective.LossInputs]:
    """Inputs of the losses of experts [E, T, B] and of the observer [T, N]."""

    def of_steps(policy, values, episodes):
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
            returns=discounted_returns(
                episodes.reward, jnp.full_like(episodes.reward, hypers.gamma)
            ),
            variances=jnp.zeros_like(episodes.reward),
            weights=episodes.mask.astype(jnp.float32),
        )

    def of_expert(head, critic, episodes):
        return of_steps(
            lambda o: networks.distribution(head, o),
            lambda o: networks.value(critic, o)[None],
            episodes,
        )

    own = jax.vmap(of_expert, (0, 0, 1))(params.heads, params.expert_critics, experts)
    acts = observer_policy(networks, params.heads, log_weights, hypers.temperature)
    others = of_steps(
        lambda o: acts((), o, None)[1], lambda o: networks.observer_values(params, o), observer
    )
    return own, others


def _inputs_of_tables(
    params: EnsembleParams,
    networks: Networks,
    log_weights: LogWeightsFn,
    experts: Episodes,
    observer: Episodes,
    hypers: PGHypers,
) -> tuple[objective.LossInputs, objective.LossInputs]:
    """The same where states are finite: one trajectory of all pairs of state and action.

    So the inputs are [E, S A, 1] and [S A, 1], and nothing has to be looked up.
    """

    def of_pairs(log_probs, values, visits):
        counts = jnp.where(visits.counts > 0, visits.counts, 1.0)
        returns = visits.returns / counts
        variances = jnp.maximum(visits.squares / counts - returns**2, 0.0)

        def of_states(x):
            return jnp.repeat(x, networks.num_actions, axis=0)[:, None]

        return objective.LossInputs(
            log_probs=log_probs.reshape(-1, 1),
            values=of_states(values),
            entropies=of_states(jax.vmap(Categorical.entropy)(Categorical(log_probs))),
            returns=returns.reshape(-1, 1),
            variances=variances.reshape(-1, 1),
            weights=visits.counts.reshape(-1, 1),
        )

    own, others = (_visits_of(networks, x, hypers.gamma) for x in (experts, observer))
    log_probs, clone_log_probs = tabulate_ensemble(
        networks, params.heads, log_weights, hypers.temperature
    )
    values, baselines = networks.tabulate_critics(params)
    return (
        jax.vmap(of_pairs)(log_probs, values[..., None], own),
        of_pairs(clone_log_probs, baselines, others),
    )


def _visits_of(networks: Networks, episodes: Episodes, gamma) -> Visits:
    if isinstance(episodes, Visits):
        return episodes
    assert networks.num_states is not None
    of = visits.of_episodes if episodes.reward.ndim == 3 else visits.of_one_policy
    return of(episodes, gamma, networks.num_states, networks.num_actions)
