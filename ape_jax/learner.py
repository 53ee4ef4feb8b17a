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
from jaxtyping import Array, Float, Key, Shaped

from ape_jax import envs, rollout
from ape_jax.config import Hypers, TrainConfig
from ape_jax.core import categorical, mixture, objective, tabular, visits
from ape_jax.core.tabular import FiniteMDP
from ape_jax.core.visits import Visits
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


class Estimates(NamedTuple):
    """What an update learns from its episodes: means over them, so that places can be averaged."""

    grads: EnsembleParams
    expert_loss: objective.Loss
    observer_loss: objective.Loss
    expert_returns: Float[Array, " E"]
    observer_return: Float[Array, ""]
    expert_length: Float[Array, ""]
    """Live steps of an expert's episode."""
    cross_entropy: Float[Array, ""] | None
    """Of the classifier, summed over an episode."""


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
    task: Task,
    state: TrainState,
    hypers: Hypers,
    num_updates: int,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """So many updates in one scan; metrics [num_updates]."""
    return jax.lax.scan(
        lambda state, _: update(task, state, hypers, axis_name), state, length=num_updates
    )


def update(
    task: Task, state: TrainState, hypers: Hypers, axis_name: str | None = None
) -> tuple[TrainState, Metrics]:
    """One update of PG-APE: collect, returns, loss, gradient, step.

    With ``hypers.min_return`` a step of the multipliers follows (paper, Eq. 2).

    Args:
      task: what is trained.
      state: before the update.
      hypers: numbers of the update.
      axis_name: a mapped axis, of ``jax.shard_map`` or ``vmap``, over which the environments are
        spread: each of its places runs an equal share of every expert's, and all average their
        gradients. Its size must divide ``envs_per_expert``.
    """
    key, key_experts, key_observer = jax.random.split(state.key, 3)
    log_weights = expert_log_weights(task, state.params)
    experts, observer = collect(
        task, state.params, log_weights, hypers, (key_experts, key_observer), axis_name
    )
    grads, (expert_loss, observer_loss) = jax.grad(loss, has_aux=True)(
        state.params, task.networks, log_weights, experts, observer, hypers, state.multipliers
    )
    cross_entropy = None
    if state.params.classifier is not None:
        cross_entropy, slope = jax.value_and_grad(classifier_loss)(
            state.params.classifier, task.networks, experts
        )
        grads = grads._replace(classifier=slope)
    estimates = Estimates(
        grads=grads,
        expert_loss=expert_loss,
        observer_loss=observer_loss,
        expert_returns=jnp.mean(jnp.sum(experts.reward, axis=0), axis=-1),
        observer_return=jnp.mean(jnp.sum(observer.reward, axis=0)),
        expert_length=jnp.mean(jnp.sum(experts.live, axis=0, dtype=jnp.float32)),
        cross_entropy=cross_entropy,
    )
    if axis_name is not None:
        estimates = jax.lax.pmean(estimates, axis_name)
    metrics = summarize(estimates, state.multipliers)
    state = dataclasses.replace(state, key=key)
    state = apply_gradients(state, estimates.grads, hypers, task.config.num_updates)
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
    axis_name: str | None = None,
) -> tuple[Transition, Transition]:
    """Fresh episodes of every expert [T, E, B] and of the observer [T, E * B].

    The observer's carry the reward r̃ of its term. B is this place's share where environments are
    spread over a mapped axis; an episode has the same random numbers wherever it runs.
    """
    expert_keys, observer_keys = (episode_keys(key, task.config, axis_name) for key in keys)
    experts, observer = rollout.ensemble_episodes(
        expert_keys,
        observer_keys.reshape(-1),
        task.networks,
        params.heads,
        observer_policy(task.networks, params, log_weights, hypers.temperature),
        task.env,
        task.env_params,
        task.num_steps,
    )
    if task.observer_reward is not None:
        rewards = jax.vmap(jax.vmap(task.observer_reward))(observer)
        observer = observer._replace(reward=jnp.where(observer.live, rewards, 0.0))
    return experts, observer


def episode_keys(key: PRNGKey, config: TrainConfig, axis_name: str | None) -> Key[Array, "E B"]:
    """Keys of this place's episodes, each derived from the episode's number among all."""
    places = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    place = 0 if axis_name is None else jax.lax.axis_index(axis_name)
    if config.envs_per_expert % places:
        raise SettingError(
            f"envs_per_expert must be divisible by {places}, the size of axis {axis_name!r}; "
            f"got {config.envs_per_expert}"
        )
    block = config.envs_per_expert // places
    numbers = jnp.arange(config.num_experts)[:, None] * config.envs_per_expert
    numbers = numbers + place * block + jnp.arange(block)[None]
    return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (None, 0))(key, numbers)


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
      experts: episodes [T, E, B].
      observer: episodes [T, N].
      hypers: β, γ, temperature, entropy bonus.
      multipliers: λ_c of the constrained form, which weigh the two terms in place of β; None in
        the penalised form.

    Returns:
      The scalar loss, and its parts averaged for each term.
    """
    chex.assert_axis_dimension(experts.reward, 1, networks.num_experts)

    def expert_block(head, critic, seen):
        policy = networks.tabulate(lambda o: networks.log_probs(head, o))
        values = networks.tabulate(lambda o: networks.value(critic, o)[None])
        losses = jax.vmap(objective.expert_loss, in_axes=1)(evaluate(policy, values, seen))
        return jax.tree.map(jnp.mean, losses)

    expert_losses = jax.vmap(expert_block, in_axes=(0, 0, 1))(
        params.heads, params.expert_critics, visits_of(networks, experts, hypers.discount)
    )
    beta: Float[Array, ""] | float = hypers.beta
    if multipliers is not None:
        weights, beta = objective.dual_weights(multipliers)
        expert_losses = expert_losses._replace(policy=weights * expert_losses.policy)
    policy = networks.tabulate(observer_policy(networks, params, log_weights, hypers.temperature))
    values = networks.tabulate(lambda o: networks.observer_values(params, o))
    one_block = jax.tree.map(lambda x: x[:, None], observer)
    seen = jax.tree.map(lambda x: x[:, 0], visits_of(networks, one_block, hypers.discount))
    observer_losses = jax.vmap(objective.observer_loss, in_axes=(1, None))(
        evaluate(policy, values, seen), beta
    )
    expert, clone = jax.tree.map(jnp.mean, (expert_losses, observer_losses))
    return total_loss(expert, clone, hypers), (expert, clone)


def total_loss(
    expert: objective.Loss, observer: objective.Loss, hypers: Hypers
) -> Float[Array, ""]:
    """The sum of both terms, each already averaged over its trajectories."""
    return (
        expert.policy
        + expert.value
        + observer.policy
        + observer.value
        - hypers.entropy_bonus * expert.entropy
    )


def classifier_loss(
    classifier: Params, networks: Networks, experts: Transition
) -> Float[Array, ""]:
    """Cross-entropy of q(c|s) on the states that experts visit: its minimum is the posterior.

    Summed over time, mean over trajectories, as the other losses are.

    Args:
      classifier: parameters of q.
      networks: what they mean.
      experts: episodes [T, E, B]; the expert of an episode is its label.
    """
    log_weights = networks.tabulate(
        lambda observation: networks.expert_log_weights(classifier, observation)
    )

    def block(label, seen):
        terms = jax.vmap(jax.vmap(log_weights))(seen.observation)[..., label]
        return -jnp.mean(jnp.sum(seen.weights * terms, axis=0))

    seen = visits_of(networks, experts, 1.0)
    return jnp.mean(jax.vmap(block, in_axes=(0, 1))(jnp.arange(networks.num_experts), seen))


def visits_of(
    networks: Networks, episodes: Transition, discount: Float[Array, ""] | float
) -> Visits:
    """What a loss needs of episodes [T, G, N]: all steps, or all pairs where states are finite."""
    steps = visits.every_step(episodes, discount)
    if networks.num_states is None:
        return steps
    return visits.every_pair(steps, networks.num_states, networks.num_actions)


def evaluate(
    policy: LogProbsFn,
    values: Callable[[Shaped[Array, "..."]], Float[Array, " V"]],
    seen: Visits,
) -> objective.Evaluated:
    """What the objective needs of what was seen [T, N], under one policy and its critics."""

    def at_visit(observation, action):
        log_probs = policy(observation)
        return log_probs[action], categorical.entropy(log_probs), values(observation)

    log_probs, entropies, columns = jax.vmap(jax.vmap(at_visit))(seen.observation, seen.action)
    return objective.Evaluated(
        log_probs, columns, entropies, seen.returns, seen.variances, seen.weights
    )


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


def summarize(estimates: Estimates, multipliers: Float[Array, " E"] | None) -> Metrics:
    """Metrics of one update."""
    expert, observer = estimates.expert_loss, estimates.observer_loss
    cross_entropy = estimates.cross_entropy
    return Metrics(
        pe_return=jnp.mean(estimates.expert_returns),
        expert_returns=estimates.expert_returns,
        observer_return=estimates.observer_return,
        policy_loss=expert.policy + observer.policy,
        value_loss=expert.value + observer.value,
        entropy=expert.entropy / estimates.expert_length,
        grad_norm=optax.tree.norm(estimates.grads.heads),
        classifier_loss=None if cross_entropy is None else cross_entropy / estimates.expert_length,
        multipliers=multipliers,
    )
