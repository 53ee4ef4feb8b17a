"""Training: state, one update, and the whole run as one pure function."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from flax import struct
from gymnax.environments.environment import Environment, EnvParams
from jaxtyping import Array, Float, Shaped

from ape_jax import envs, rollout
from ape_jax.config import Hypers, TrainConfig
from ape_jax.core import categorical, mixture, objective, returns, tabular
from ape_jax.core.tabular import FiniteMDP
from ape_jax.networks import EnsembleParams, Networks, make_networks
from ape_jax.types import (
    LogProbsFn,
    LogWeightsFn,
    Params,
    PRNGKey,
    RewardFn,
    SettingError,
    Transition,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What is fixed for a run: the environment, and the networks that act in it.

    Compared and hashed by identity, so that it can be a static argument of ``jax.jit``.
    """

    config: TrainConfig
    env: Environment
    env_params: EnvParams
    networks: Networks
    mdp: FiniteMDP | None
    """The environment as a finite MDP, where it offers one."""
    num_steps: int
    """Length of a rollout: the environment's time limit."""
    observer_reward: RewardFn | None = None
    """r̃, the reward of the observer's term; None where it is the experts' own."""


@struct.dataclass
class TrainState:
    """Everything that an update changes."""

    params: EnsembleParams
    opt_state: optax.OptState
    key: jax.Array
    """Typed; drives the rollouts to come."""
    multipliers: jax.Array | None
    """λ_c [E] of the constrained form; None in the penalised form."""
    networks: Networks = struct.field(pytree_node=False)


FIRST_MULTIPLIER = 3.0
"""Of every expert at the start: training begins as the penalised form with β = 1/3."""


class Metrics(NamedTuple):
    """Of one update; returns are means over the episodes that it collected, undiscounted."""

    pe_return: Float[Array, ""]
    """Mean over experts."""
    expert_returns: Float[Array, " E"]
    observer_return: Float[Array, ""]
    """Of the observer trained against, at its weights and temperature; of r̃ where one is given."""
    policy_loss: Float[Array, ""]
    value_loss: Float[Array, ""]
    entropy: Float[Array, ""]
    """Of the experts, mean over their live steps, in nats."""
    grad_norm: Float[Array, ""]
    """Of the heads, before clipping."""
    classifier_loss: Float[Array, ""] | None = None
    """Cross-entropy of the learned weights on the experts' steps, in nats a step: log E at the
    start, lower where states tell experts apart. None where weights are not learned."""
    multipliers: Float[Array, " E"] | None = None
    """λ_c of the constrained form, before its dual step. None in the penalised form."""


def make_task(
    config: TrainConfig,
    env: Environment | None = None,
    env_params: EnvParams | None = None,
    observer_reward: RewardFn | None = None,
) -> Task:
    """Build environment and networks, and check that they fit each other.

    Args:
      config: static settings.
      env: an environment to use in place of ``config.env``, such as one that is not registered.
      env_params: its parameters; its defaults if None.
      observer_reward: r̃, one step (a ``Transition`` without leading axes) to a scalar, which takes
        the environment's reward's place in the observer's term (paper, section 6). What happens
        after the end of an episode counts for nothing.

    Raises:
      SettingError: the environment is unknown, or does not fit the head or the observer.
    """
    if env is None:
        env, default_params = envs.make(config.env)
    else:
        default_params = env.default_params
        config = dataclasses.replace(config, env=env.name)
    env_params = default_params if env_params is None else env_params
    mdp = envs.finite_mdp(env, env_params)
    if config.observer == "posterior" and mdp is None:
        raise SettingError(
            f"observer='posterior' needs an environment with a finite MDP, such as "
            f"{envs.GRIDWORLD}; got env={config.env!r}. Use observer='learned'"
        )
    networks = make_networks(
        config, env.observation_space(env_params), env.action_space(env_params)
    )
    num_steps = int(env_params.max_steps_in_episode)
    return Task(config, env, env_params, networks, mdp, num_steps, observer_reward)


def create_state(key: PRNGKey, networks: Networks, hypers: Hypers) -> TrainState:
    """Fresh parameters and optimiser state."""
    key_params, key_state = jax.random.split(key)
    params = networks.init(key_params)
    return TrainState(
        params=params,
        opt_state=optimizer(hypers).init(params),
        key=key_state,
        multipliers=(
            None if hypers.min_return is None else jnp.full(networks.num_experts, FIRST_MULTIPLIER)
        ),
        networks=networks,
    )


def make_train(
    config: TrainConfig,
    env: Environment | None = None,
    env_params: EnvParams | None = None,
    observer_reward: RewardFn | None = None,
) -> Callable[[PRNGKey, Hypers], tuple[TrainState, Metrics]]:
    """A whole training run as one pure function: jit it, vmap it over keys or hyperparameters.

    Args:
      config: static settings.
      env: as in :func:`make_task`.
      env_params: as in :func:`make_task`.
      observer_reward: as in :func:`make_task`.

    Returns:
      ``train(key, hypers) -> (final state, metrics [num_updates])``.

    Raises:
      SettingError: settings that do not fit each other.
    """
    task = make_task(config, env, env_params, observer_reward)

    def train(key: PRNGKey, hypers: Hypers) -> tuple[TrainState, Metrics]:
        state = create_state(key, task.networks, hypers)
        return updates(task, state, hypers, config.num_updates)

    return train


def updates(
    task: Task, state: TrainState, hypers: Hypers, num_updates: int
) -> tuple[TrainState, Metrics]:
    """So many updates in one scan; metrics [num_updates]."""
    return jax.lax.scan(lambda state, _: update(task, state, hypers), state, length=num_updates)


def update(task: Task, state: TrainState, hypers: Hypers) -> tuple[TrainState, Metrics]:
    """One update of PG-APE: collect, returns, loss, gradient, step.

    With ``hypers.min_return`` a step of the multipliers follows (paper, Eq. 2).
    """
    key, key_experts, key_observer = jax.random.split(state.key, 3)
    log_weights = expert_log_weights(task, state.params)
    experts, observer = collect(
        task, state.params, log_weights, hypers, (key_experts, key_observer)
    )
    grads, (expert_loss, observer_loss) = jax.grad(loss, has_aux=True)(
        state.params, task.networks, log_weights, experts, observer, hypers, state.multipliers
    )
    metrics = summarize(experts, observer, expert_loss, observer_loss, grads)
    metrics = metrics._replace(multipliers=state.multipliers)
    if state.params.classifier is not None:
        cross_entropy, slope = jax.value_and_grad(classifier_loss)(
            state.params.classifier, task.networks, experts
        )
        grads = grads._replace(classifier=slope)
        num_steps = jnp.mean(jnp.sum(experts.live, axis=-1))
        metrics = metrics._replace(classifier_loss=cross_entropy / num_steps)
    state = dataclasses.replace(state, key=key)
    state = apply_gradients(state, grads, hypers, task.config.num_updates)
    return constrain(state, metrics.expert_returns, hypers), metrics


def expert_log_weights(task: Task, params: EnsembleParams) -> LogWeightsFn:
    """Weights log w_c as a function of the observation, held constant in the gradient."""
    num_experts = task.networks.num_experts
    if params.classifier is not None:
        classifier = jax.lax.stop_gradient(params.classifier)
        return task.networks.tabulate(
            lambda observation: task.networks.expert_log_weights(classifier, observation)
        )
    if task.config.observer != "posterior" or task.mdp is None:
        uniform = mixture.uniform_log_weights(num_experts)
        return lambda observation: uniform
    log_probs = task.networks.tabulate_experts(params.heads)
    weights = tabular.observer_weights(task.mdp, jnp.exp(log_probs), "posterior")
    weights = jax.lax.stop_gradient(weights)
    return lambda state: weights[state]


def observer_policy(
    networks: Networks, params: EnsembleParams, log_weights: LogWeightsFn, temperature
) -> LogProbsFn:
    """The observer trained against: the tempered mixture of all heads."""
    return lambda observation: mixture.observer_log_probs(
        networks.expert_log_probs(params.heads, observation),
        log_weights(observation),
        temperature,
    )


def collect(
    task: Task,
    params: EnsembleParams,
    log_weights: LogWeightsFn,
    hypers: Hypers,
    keys: tuple[PRNGKey, PRNGKey],
) -> tuple[Transition, Transition]:
    """Fresh episodes of every expert [E, B, T] and of the observer [E * B, T].

    The observer's carry the reward r̃ of its term.
    """
    config = task.config
    shape = (config.num_experts, config.envs_per_expert)
    world = (task.env, task.env_params, task.num_steps)
    policy = observer_policy(task.networks, params, log_weights, hypers.temperature)
    experts = rollout.expert_episodes(
        jax.random.split(keys[0], shape), task.networks, params.heads, *world
    )
    observer = rollout.observer_episodes(
        jax.random.split(keys[1], shape[0] * shape[1]), task.networks, policy, *world
    )
    if task.observer_reward is not None:
        rewards = jax.vmap(jax.vmap(task.observer_reward))(observer)
        observer = observer._replace(reward=jnp.where(observer.live, rewards, 0.0))
    return experts, observer


def loss(
    params: EnsembleParams,
    networks: Networks,
    log_weights: LogWeightsFn,
    experts: Transition,
    observer: Transition,
    hypers: Hypers,
    multipliers: Float[Array, " E"] | None = None,
) -> tuple[Float[Array, ""], tuple[objective.Loss, objective.Loss]]:
    """The PG-APE loss of collected episodes: mean over trajectories of both terms.

    Args:
      params: heads and critics.
      networks: what they mean.
      log_weights: the observer's log w_c, a function of the observation.
      experts: episodes [E, B, T].
      observer: episodes [N, T].
      hypers: β, γ, temperature, entropy bonus.
      multipliers: λ_c of the constrained form, which weigh the two terms in place of β; None in
        the penalised form.

    Returns:
      The scalar loss, and its parts averaged for each term.
    """
    chex.assert_tree_shape_prefix(experts, (networks.num_experts,))

    def expert_block(head, critic, episodes):
        policy = networks.tabulate(lambda o: networks.log_probs(head, o))
        values = networks.tabulate(lambda o: networks.value(critic, o)[None])
        return evaluate(policy, values, episodes, hypers.discount)

    blocks = jax.vmap(expert_block)(params.heads, params.expert_critics, experts)
    expert_evaluated = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), blocks)
    policy = networks.tabulate(observer_policy(networks, params, log_weights, hypers.temperature))
    values = networks.tabulate(lambda o: networks.observer_values(params, o))
    observer_evaluated = evaluate(policy, values, observer, hypers.discount)
    if multipliers is None:
        return total_loss(expert_evaluated, observer_evaluated, hypers)
    expert_weights, observer_weight = objective.dual_weights(multipliers)
    weights = (jnp.repeat(expert_weights, experts.reward.shape[1]), observer_weight)
    return total_loss(expert_evaluated, observer_evaluated, hypers, weights)


def total_loss(
    experts: objective.Evaluated,
    observer: objective.Evaluated,
    hypers: Hypers,
    weights: tuple[Float[Array, " N"], Float[Array, ""]] | None = None,
) -> tuple[Float[Array, ""], tuple[objective.Loss, objective.Loss]]:
    """Both terms of the objective, each averaged over its trajectories, and their sum.

    Args:
      experts: their trajectories [N, ...].
      observer: its trajectories, as many or not.
      hypers: β, entropy bonus.
      weights: of the policy's loss of each expert trajectory, and of the observer's return in place
        of β; 1 and β if None.
    """
    expert_losses = jax.vmap(objective.expert_loss)(experts)
    beta: Float[Array, ""] | float = hypers.beta
    if weights is not None:
        expert_weights, beta = weights
        expert_losses = expert_losses._replace(policy=expert_weights * expert_losses.policy)
    observer_losses = jax.vmap(objective.observer_loss, in_axes=(0, None))(observer, beta)
    expert, clone = jax.tree.map(jnp.mean, (expert_losses, observer_losses))
    total = (
        expert.policy
        + expert.value
        + clone.policy
        + clone.value
        - hypers.entropy_bonus * expert.entropy
    )
    return total, (expert, clone)


def classifier_loss(
    classifier: Params, networks: Networks, experts: Transition
) -> Float[Array, ""]:
    """Cross-entropy of q(c|s) on the states that experts visit: its minimum is the posterior.

    Summed over time, mean over trajectories, as the other losses are.

    Args:
      classifier: parameters of q.
      networks: what they mean.
      experts: episodes [E, B, T]; the expert of the leading axis is the label.
    """
    log_weights = networks.tabulate(
        lambda observation: networks.expert_log_weights(classifier, observation)
    )

    def trajectory(label, episode):
        terms = jax.vmap(log_weights)(episode.observation)[:, label]
        return -jnp.sum(jnp.where(episode.live, terms, 0.0))

    labels = jnp.arange(networks.num_experts)
    return jnp.mean(jax.vmap(jax.vmap(trajectory, in_axes=(None, 0)))(labels, experts))


def evaluate(
    policy: LogProbsFn,
    values: Callable[[Shaped[Array, "..."]], Float[Array, " V"]],
    episodes: Transition,
    discount: Float[Array, ""] | float,
) -> objective.Evaluated:
    """What the objective needs of episodes [..., T], under one policy and its critics."""

    def at_step(observation, action):
        log_probs = policy(observation)
        return log_probs[action], categorical.entropy(log_probs), values(observation)

    def trajectory(episode: Transition) -> objective.Evaluated:
        log_probs, entropies, columns = jax.vmap(at_step)(episode.observation, episode.action)
        discounts = jnp.full_like(episode.reward, discount)
        return objective.Evaluated(
            log_probs=log_probs,
            values=columns,
            entropies=entropies,
            returns=returns.discounted_returns(episode.reward, discounts),
            live=episode.live.astype(episode.reward.dtype),
        )

    return jax.vmap(trajectory)(episodes)


def apply_gradients(
    state: TrainState, grads: EnsembleParams, hypers: Hypers, num_updates: int | None = None
) -> TrainState:
    """One optimiser step."""
    changes, opt_state = optimizer(hypers, num_updates).update(grads, state.opt_state, state.params)
    return dataclasses.replace(
        state, params=optax.apply_updates(state.params, changes), opt_state=opt_state
    )


def constrain(state: TrainState, expert_returns: Float[Array, " E"], hypers: Hypers) -> TrainState:
    """The dual step of the constrained form (paper, Eq. 2); nothing in the penalised form.

    Args:
      state: before it.
      expert_returns: undiscounted means over this update's episodes. Their noise needs no further
        averaging: the logarithm of a multiplier sums it over updates.
      hypers: α, the step size η, and the bound.
    """
    if state.multipliers is None or hypers.min_return is None:
        return state
    multipliers = objective.dual_step(
        state.multipliers,
        expert_returns,
        hypers.min_return,
        hypers.multiplier_rate,
        hypers.max_multiplier,
    )
    return dataclasses.replace(state, multipliers=multipliers)


def optimizer(hypers: Hypers, num_updates: int | None = None) -> optax.GradientTransformation:
    """Adam for heads and critics, each at its own rate; the heads' gradient is clipped.

    Rebuilt from the traced ``hypers`` at every use; only its state is carried.

    Args:
      hypers: rates, their final share, clipping norm.
      num_updates: length of the linear decay; None keeps the rates constant.
    """

    def decayed(rate):
        fall = 0.0 if num_updates is None else (1.0 - hypers.final_rate_share) * rate
        last_count = max((num_updates or 0) - 1, 1)
        return lambda count: rate - fall * count / last_count

    return optax.partition(
        {
            "heads": optax.chain(
                optax.clip_by_global_norm(hypers.max_grad_norm),
                optax.adam(decayed(hypers.learning_rate)),
            ),
            "critics": optax.adam(decayed(hypers.critic_learning_rate)),
            "classifier": optax.adam(decayed(hypers.classifier_learning_rate)),
        },
        lambda params: EnsembleParams(
            heads="heads",
            expert_critics="critics",
            observer_critic=jax.tree.map(lambda _: "critics", params.observer_critic),
            classifier=jax.tree.map(lambda _: "classifier", params.classifier),
        ),
    )


def summarize(
    experts: Transition,
    observer: Transition,
    expert_loss: objective.Loss,
    observer_loss: objective.Loss,
    grads: EnsembleParams,
) -> Metrics:
    """Metrics of one update."""
    expert_returns = jnp.mean(jnp.sum(experts.reward, axis=-1), axis=-1)
    return Metrics(
        pe_return=jnp.mean(expert_returns),
        expert_returns=expert_returns,
        observer_return=jnp.mean(jnp.sum(observer.reward, axis=-1)),
        policy_loss=expert_loss.policy + observer_loss.policy,
        value_loss=expert_loss.value + observer_loss.value,
        entropy=expert_loss.entropy / jnp.mean(jnp.sum(experts.live, axis=-1)),
        grad_norm=optax.tree.norm(grads.heads),
    )
