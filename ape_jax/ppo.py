"""PPO-APE: clipped surrogates for both terms, over segments of endless streams of episodes.

Experts ascend their own advantage, and every expert the negative of the observer's, whose policy is
made of all of them. Advantages are in units of their standard deviation, for each expert and for
the observer apart, so that β weighs terms of one size in every environment.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Shaped

from ape_jax import rollout
from ape_jax.config import Hypers
from ape_jax.core import calibration, moments, objective, random, returns
from ape_jax.core.distributions import Distribution
from ape_jax.networks import EnsembleParams, Networks, with_statistics
from ape_jax.rollout import Segment, Streams
from ape_jax.training import (
    Metrics,
    PPOState,
    Task,
    TrainState,
    constrain,
    expert_log_weights,
)
from ape_jax.types import LogWeightsFn, Params, PRNGKey, Transition


class Steps(NamedTuple):
    """What a minibatch needs of steps [N] of one policy."""

    observation: Shaped[Array, "N ..."]
    action: Shaped[Array, "N ..."]
    log_prob: Float[Array, " N"]
    """When it was taken."""
    value: Float[Array, " N"]
    """Then."""
    advantage: Float[Array, " N"]
    """In standard deviations of all of this policy's in the segment."""
    target: Float[Array, " N"]
    """Of the critic."""
    log_weights: Float[Array, "N E"] | None = None
    """Of the observer's experts, at its steps."""


class Batch(NamedTuple):
    """A segment, or a minibatch of it."""

    experts: Steps
    """[E, T * B]."""
    observer: Steps | None
    """[T * M]; None where nobody observes."""


class Parts(NamedTuple):
    """Of the loss of a minibatch."""

    policy: Float[Array, ""]
    value: Float[Array, ""]
    entropy: Float[Array, ""]
    classifier: Float[Array, ""] | None


def begin(key: PRNGKey, task: Task, hypers: Hypers, state: TrainState) -> TrainState:
    """A fresh state with environments to go on from, and its own optimiser's."""
    config, networks = task.config, task.networks
    keys = jax.random.split(key, num_streams(task))
    streams = rollout.begin(keys, task.env, task.env_params)
    size = streams.observation[0].size
    carried = PPOState(
        streams=streams,
        expert_returns=jnp.full(networks.num_experts, jnp.nan),
        observer_return=jnp.float32(jnp.nan),
        observations=moments.standard((size,)) if config.normalize_observations else None,
        rewards=moments.standard(()) if config.normalize_rewards else None,
        num_updates=jnp.int32(0),
    )
    return dataclasses.replace(
        state,
        ppo=carried,
        opt_state=optimizer(task, hypers).init(state.params),
        multipliers=None if config.hold == "gate" else state.multipliers,
    )


def num_streams(task: Task) -> int:
    """Environments in all: B of every expert, and as many again for the observer."""
    config = task.config
    return config.num_experts * config.envs_per_expert * (1 if config.observer == "none" else 2)


def optimizer(task: Task, hypers: Hypers) -> optax.GradientTransformation:
    """Adam, clipped for every expert apart, so that none takes another's share of the step.

    Rates fall over all steps of the optimiser; the classifier's stays.
    """
    config = task.config
    steps = config.num_updates * config.num_epochs * config.num_minibatches
    clip = optax.clip_by_global_norm(hypers.max_grad_norm)
    each = optax.stateless(
        lambda updates, _: jax.vmap(lambda x: clip.update(x, optax.EmptyState())[0])(updates)
    )

    def adam(rate, *clips):
        rates = optax.linear_schedule(rate, hypers.final_rate_share * rate, max(steps - 1, 1))
        return optax.chain(*clips, optax.adam(rates, eps=1e-5))

    # Copies of a shared layer must stay alike.
    of_heads = clip if task.networks.last_layer else each
    return optax.partition(
        {
            "heads": adam(hypers.learning_rate, of_heads),
            "expert critics": adam(hypers.critic_learning_rate, each),
            "observer critic": adam(hypers.critic_learning_rate, clip),
            "classifier": optax.adam(hypers.classifier_learning_rate, eps=1e-5),
        },
        lambda params: EnsembleParams(
            heads="heads",
            expert_critics="expert critics",
            observer_critic=jax.tree.map(lambda _: "observer critic", params.observer_critic),
            classifier=jax.tree.map(lambda _: "classifier", params.classifier),
        ),
    )


def update(task: Task, state: TrainState, hypers: Hypers) -> tuple[TrainState, Metrics]:
    """One update: a segment of every stream, then epochs of minibatches over it.

    Args:
      task: what is trained.
      state: before the update, from :func:`begin` or another update.
      hypers: numbers of the update.
    """
    assert state.ppo is not None
    carried, config = state.ppo, task.config
    key, key_collect, key_shuffle = jax.random.split(state.key, 3)
    log_weights = expert_log_weights(task, state.params)
    temperature = temperature_at(carried.num_updates, config.num_updates, hypers)

    def observer(heads, observation):
        pooled = task.networks.policies(heads, observation).pool(log_weights(observation))
        return pooled.temper(temperature)

    streams, steps, seen = collect(
        key_collect, task, state.params, carried.streams, observer, hypers
    )
    carried = go_on(task, carried, streams, steps, seen)
    batch = prepare(task, state.params, steps, seen, carried, log_weights, hypers)
    calibration_error = None
    if state.params.classifier is not None:
        calibration_error = calibration_of(task.networks, state.params.classifier, batch.experts)
    gates = jnp.ones(config.num_experts)
    if config.hold == "gate" and hypers.min_return is not None:
        gates = objective.gate(carried.expert_returns, hypers.min_return, hypers.gate_scale)

    def loss(params, part):
        return minibatch_loss(
            params, task.networks, part, hypers, temperature, gates, state.multipliers
        )

    params, opt_state, parts, grad_norm = descend(key_shuffle, task, state, batch, loss, hypers)
    if carried.observations is not None:
        params = with_statistics(params, carried.observations.mean, carried.observations.scale())
    metrics = Metrics(
        pe_return=jnp.mean(carried.expert_returns),
        expert_returns=carried.expert_returns,
        observer_return=carried.observer_return,
        policy_loss=parts.policy,
        value_loss=parts.value,
        entropy=parts.entropy,
        grad_norm=grad_norm,
        classifier_loss=parts.classifier,
        multipliers=state.multipliers,
        calibration_error=calibration_error,
    )
    state = dataclasses.replace(state, params=params, opt_state=opt_state, key=key, ppo=carried)
    return constrain(state, carried.expert_returns, hypers), metrics


def temperature_at(num_done, num_updates: int, hypers: Hypers) -> Float[Array, ""] | float:
    """Of the observer at an update: from the first temperature linearly to the last."""
    if hypers.first_temperature is None:
        return hypers.temperature
    done = num_done / max(num_updates - 1, 1)
    return hypers.first_temperature + done * (hypers.temperature - hypers.first_temperature)


def collect(
    key: PRNGKey,
    task: Task,
    params: EnsembleParams,
    streams: Streams,
    observer: Callable[[Params, Shaped[Array, "..."]], Distribution],
    hypers: Hypers,
) -> tuple[Streams, Transition, Segment]:
    """A segment of every stream [T, E * B + M]: experts in their own blocks, then the observer."""
    networks, config = task.networks, task.config
    num_experts, num_all = config.num_experts, num_streams(task)
    num_own = num_experts * config.envs_per_expert

    def act_as(policy, uniforms):
        action = policy.sample(uniforms)
        return action, policy.log_prob(action)

    def expert(head, observation, uniforms):
        return act_as(networks.policy(head, observation), uniforms)

    def clone(observation, uniforms):
        return act_as(observer(params.heads, observation), uniforms)

    def act(observations, uniforms):
        own = jax.tree.map(
            lambda x: x[:num_own].reshape(num_experts, -1, *x.shape[1:]), (observations, uniforms)
        )
        of_experts = jax.vmap(jax.vmap(expert, (None, 0, 0)))(params.heads, *own)
        of_experts = jax.tree.map(lambda x: x.reshape(num_own, *x.shape[2:]), of_experts)
        if num_all == num_own:
            return of_experts
        of_observer = jax.vmap(clone)(observations[num_own:], uniforms[num_own:])
        return jax.tree.map(lambda *x: jnp.concatenate(x), of_experts, of_observer)

    return rollout.segment(
        jax.random.split(key, num_all),
        streams,
        act,
        task.env,
        task.env_params,
        config.segment_length,
        networks.num_uniforms,
        hypers.discount,
        networks.legal,
    )


def go_on(
    task: Task, carried: PPOState, streams: Streams, steps: Transition, seen: Segment
) -> PPOState:
    """Returns and running statistics after a segment."""
    config = task.config
    ended = steps.terminated | steps.truncated
    num_own = config.num_experts * config.envs_per_expert

    def newest(mean, ended, episode_return):
        count = jnp.sum(ended)
        total = jnp.sum(jnp.where(ended, episode_return, 0.0))
        share = jnp.minimum(count / config.envs_per_expert, 1.0)
        share = jnp.where(jnp.isnan(mean), 1.0, share)
        moved = jnp.nan_to_num(mean) * (1.0 - share) + share * total / jnp.maximum(count, 1)
        return jnp.where(count > 0, moved, mean)

    own = jax.tree.map(
        lambda x: x[:, :num_own].reshape(x.shape[0], config.num_experts, -1),
        (ended, seen.episode_return),
    )
    observations, rewards = carried.observations, carried.rewards
    if observations is not None:
        flat = steps.observation[:, :num_own].reshape(-1, observations.mean.shape[0])
        observations = moments.merge(observations, flat.astype(jnp.float32))
    if rewards is not None:
        rewards = moments.merge(rewards, seen.discounted_return.reshape(-1))
    return PPOState(
        streams=streams,
        expert_returns=jax.vmap(newest, (0, 1, 1))(carried.expert_returns, *own),
        observer_return=newest(
            carried.observer_return, ended[:, num_own:], seen.episode_return[:, num_own:]
        ),
        observations=observations,
        rewards=rewards,
        num_updates=carried.num_updates + 1,
    )


def prepare(
    task: Task,
    params: EnsembleParams,
    steps: Transition,
    seen: Segment,
    carried: PPOState,
    log_weights: LogWeightsFn,
    hypers: Hypers,
) -> Batch:
    """Values, advantages and targets of a segment, flat over time and environments."""
    networks, num_experts = task.networks, task.config.num_experts
    num_own = num_experts * task.config.envs_per_expert
    scale = 1.0 if carried.rewards is None else carried.rewards.scale()

    def of_policy(critic, steps, log_prob, reward):
        value = jax.vmap(jax.vmap(networks.value, (None, 0)), (None, 0))
        values = value(critic, steps.observation)
        next_values = value(critic, steps.next_observation)
        advantages = jax.vmap(
            returns.generalized_advantages, in_axes=(1, 1, 1, 1, 1, None, None), out_axes=1
        )(
            *(reward * scale, values, next_values, steps.terminated, steps.truncated),
            *(hypers.discount, hypers.trace_decay),
        )
        standard = (advantages - jnp.mean(advantages)) / (jnp.std(advantages) + 1e-8)
        of_steps = Steps(
            *(steps.observation, steps.action, log_prob),
            *(values, standard, advantages + values),
        )
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), of_steps)

    own = jax.tree.map(
        lambda x: x[:, :num_own].reshape(x.shape[0], num_experts, -1, *x.shape[2:]),
        (steps, seen.log_prob),
    )
    experts = jax.vmap(of_policy, (0, 1, 1, 1))(
        params.expert_critics, own[0], own[1], own[0].reward
    )
    if task.config.observer == "none":
        return Batch(experts, None)
    others, log_prob = jax.tree.map(lambda x: x[:, num_own:], (steps, seen.log_prob))
    reward = others.reward
    if task.observer_reward is not None:
        reward = jax.vmap(jax.vmap(task.observer_reward))(others)
    observer = of_policy(params.observer_critic, others, log_prob, reward)
    weights = jax.vmap(log_weights)(observer.observation)
    return Batch(experts, observer._replace(log_weights=weights))


def descend(
    key: PRNGKey, task: Task, state: TrainState, batch: Batch, loss: Callable, hypers: Hypers
) -> tuple[EnsembleParams, optax.OptState, Parts, Float[Array, ""]]:
    """Epochs of minibatches in one scan; loss and norm of the gradient are means over all."""
    config = task.config
    step = optimizer(task, hypers)

    def split(key: PRNGKey, steps: Steps, axis: int) -> Steps:
        """Shuffled minibatches [P, …] of steps along an axis; every expert in the same order."""
        order = random.permutation(key, steps.log_prob.shape[axis])
        order = order.reshape(config.num_minibatches, -1)
        return jax.tree.map(lambda x: jnp.moveaxis(jnp.take(x, order, axis=axis), axis, 0), steps)

    def minibatch(carry, part):
        params, opt_state = carry
        grads, parts = jax.grad(loss, has_aux=True)(params, part)
        grads = grads._replace(heads=task.networks.tie(grads.heads))
        changes, opt_state = step.update(grads, opt_state, params)
        params = optax.apply_updates(params, changes)
        return (params, opt_state), (parts, optax.tree.norm(grads.heads))

    def epoch(carry, key):
        key_experts, key_observer = jax.random.split(key)
        observer = batch.observer
        if observer is not None:
            observer = split(key_observer, observer, 0)
        parts = Batch(split(key_experts, batch.experts, 1), observer)
        return jax.lax.scan(minibatch, carry, parts)

    carry = (state.params, state.opt_state)
    (params, opt_state), seen = jax.lax.scan(epoch, carry, jax.random.split(key, config.num_epochs))
    return params, opt_state, *jax.tree.map(jnp.mean, seen)


def minibatch_loss(
    params: EnsembleParams,
    networks: Networks,
    batch: Batch,
    hypers: Hypers,
    temperature: Float[Array, ""] | float,
    gates: Float[Array, " E"],
    multipliers: Float[Array, " E"] | None = None,
) -> tuple[Float[Array, ""], Parts]:
    """The PPO-APE loss: each expert's clipped surrogate, and β times the observer's.

    Args:
      params: heads, critics, classifier.
      networks: what they mean.
      batch: steps of every expert [E, N] and of the observer [N'].
      hypers: β, clipping, entropy bonus.
      temperature: of the observer.
      gates: share of the observer's gradient that each expert takes.
      multipliers: λ_c, which weigh the two terms in place of β; None in the penalised form.

    Returns:
      The scalar loss, and its parts.
    """

    def expert_block(head, critic, steps):
        def at_step(observation, action):
            policy = networks.policy(head, observation)
            return policy.log_prob(action), policy.entropy()

        log_probs, entropies = jax.vmap(at_step)(steps.observation, steps.action)
        surrogate = objective.clipped_surrogate(
            log_probs, steps.log_prob, steps.advantage, hypers.clip_ratio
        )
        return surrogate, critic_loss(critic, steps), jnp.mean(entropies)

    def critic_loss(critic, steps):
        values = jax.vmap(networks.value, (None, 0))(critic, steps.observation)
        return objective.clipped_value_loss(values, steps.value, steps.target, hypers.value_clip)

    weights, beta = jnp.ones(networks.num_experts), jnp.float32(hypers.beta)
    if multipliers is not None:
        weights, beta = objective.dual_weights(multipliers)
    policies, values, entropies = jax.vmap(expert_block)(
        params.heads, params.expert_critics, batch.experts
    )
    policy, value, entropy = jnp.sum(weights * policies), jnp.sum(values), jnp.sum(entropies)
    classifier = None
    if params.classifier is not None:
        classifier = classifier_loss(networks, params.classifier, batch.experts)
    steps = batch.observer
    if steps is not None:

        def at_observer_step(observation, action, log_weights):
            policies = networks.policies(params.heads, observation)
            policies = jax.tree.map(_gated(gates), policies)
            return policies.pool(log_weights).temper(temperature).log_prob(action)

        log_probs = jax.vmap(at_observer_step)(steps.observation, steps.action, steps.log_weights)
        policy = policy + beta * objective.clipped_surrogate(
            log_probs, steps.log_prob, -steps.advantage, hypers.clip_ratio
        )
        value = value + critic_loss(params.observer_critic, steps)
    total = policy + value - hypers.entropy_bonus * entropy
    total = total + (0.0 if classifier is None else classifier)
    return total, Parts(policy, value, entropy / networks.num_experts, classifier)


def _gated(gates: Float[Array, " E"]) -> Callable:
    """The same values, with so much of the gradient."""

    def gated(x):
        shares = gates.reshape(-1, *[1] * (x.ndim - 1))
        return shares * x + (1.0 - shares) * jax.lax.stop_gradient(x)

    return gated


def classifier_loss(networks: Networks, classifier: Params, experts: Steps) -> Float[Array, ""]:
    """Cross-entropy of q(c|s) on the steps [E, N] of all experts, in nats a step."""
    at_steps = jax.vmap(jax.vmap(networks.expert_log_weights, (None, 0)), (None, 0))
    log_weights = at_steps(classifier, experts.observation)
    own = jnp.diagonal(log_weights, axis1=0, axis2=2)
    return -jnp.mean(own)


def calibration_of(networks: Networks, classifier: Params, experts: Steps) -> Float[Array, ""]:
    """How far the classifier's confidence is from its accuracy on steps [E, N]."""
    at_steps = jax.vmap(jax.vmap(networks.expert_log_weights, (None, 0)), (None, 0))
    log_weights = at_steps(classifier, experts.observation)
    num_experts, num_steps = log_weights.shape[:2]
    labels = jnp.repeat(jnp.arange(num_experts), num_steps)
    return calibration.expected_calibration_error(log_weights.reshape(-1, num_experts), labels)
