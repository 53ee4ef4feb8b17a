"""What both algorithms share: task, state, metrics, optimiser and the dual step."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from gymnax.environments.environment import Environment, EnvParams
from jaxtyping import Array, Float

from ape_jax import envs
from ape_jax.config import Hypers, TrainConfig
from ape_jax.core import mixture, objective, tabular
from ape_jax.core.statistics import Moments
from ape_jax.envs.rollout import EnvLoopState
from ape_jax.envs.world import World
from ape_jax.networks import EnsembleParams, Networks, make_networks
from ape_jax.types import LogWeightsFn, RewardFn, SettingError


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What is fixed for a run: the environment, and the networks that act in it.

    Compared and hashed by identity, so that it can be a static argument of ``jax.jit``.
    """

    config: TrainConfig
    """What shapes the program."""
    world: World
    """The environment that experts act in."""
    networks: Networks
    """Heads and critics for its spaces."""
    observer_reward: RewardFn | None = None
    """r̃, the reward of the observer's term; None where it is the experts' own."""


@struct.dataclass
class PPOState:
    """What ppo goes on from besides its parameters."""

    streams: EnvLoopState
    """Of every expert's environments, then of the observer's, [E * B + M, …]."""
    expert_returns: jax.Array
    """[E]; mean of about the last B episodes of each expert; 0 before the first has ended."""
    observer_return: jax.Array
    """Likewise."""
    num_episodes: jax.Array
    """[E]; that have ended so far."""
    observer_episodes: jax.Array
    """Likewise."""
    ends_per_step: jax.Array
    """[E]; running mean, one over the length of an expert's episode."""
    observations: Moments | None
    """Of what experts saw; None where observations are not normalised."""
    rewards: Moments | None
    """Of discounted returns; None where rewards are not normalised."""
    num_updates: jax.Array
    """Done so far."""


@struct.dataclass
class TrainState:
    """Everything that an update changes."""

    params: EnsembleParams
    """Of heads and critics."""
    opt_state: optax.OptState
    """Of the optimiser, which is itself rebuilt from ``Hypers``."""
    key: jax.Array
    """Typed; drives the rollouts to come."""
    multipliers: jax.Array | None
    """λ_c [E] of the constrained form; None in the penalised form."""
    networks: Networks = struct.field(pytree_node=False)
    """The modules that the parameters belong to."""
    ppo: PPOState | None = None
    """Of ppo; the policy gradient starts every update from fresh episodes."""


FIRST_MULTIPLIER = 3.0
"""Of every expert at the start: training begins as the penalised form with β = 1/3."""


class Metrics(NamedTuple):
    """Of one update.

    Returns are undiscounted, means over the episodes that it collected; with ppo over about the
    last B of each policy, and nan before its first has ended.
    """

    pe_return: Float[Array, ""]
    """Mean over experts."""
    expert_returns: Float[Array, " E"]
    """Every expert's mean return over the episodes of the update."""
    observer_return: Float[Array, ""]
    """Of the observer trained against, at its weights and temperature; of r̃ where one is given."""
    policy_loss: Float[Array, ""]
    """Of both terms."""
    value_loss: Float[Array, ""]
    """Of all critics."""
    entropy: Float[Array, ""]
    """Of the experts, mean over their live steps, in nats."""
    grad_norm: Float[Array, ""]
    """Of the heads, before clipping."""
    classifier_loss: Float[Array, ""] | None = None
    """Cross-entropy of the learned weights on the experts' steps, in nats a step: log E at the
    start, lower where states tell experts apart. None where weights are not learned."""
    multipliers: Float[Array, " E"] | None = None
    """λ_c of the constrained form, before its dual step. None in the penalised form."""
    calibration_error: Float[Array, ""] | None = None
    """Expected calibration error of the learned weights on steps that they were not yet fitted to;
    None where weights are not learned, and with pg."""


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
        env, default_params = envs.make(config.env, envs.parse_overrides(config.env_param))
    else:
        default_params = env.default_params
        config = dataclasses.replace(config, env=env.name)
    env_params = default_params if env_params is None else env_params
    if observer_reward is not None and config.algorithm == "ppo":
        raise SettingError("observer_reward goes with algorithm='pg'; got algorithm='ppo'")
    mdp = envs.finite_mdp(env, env_params)
    if config.observer == "posterior" and mdp is None:
        raise SettingError(
            f"observer='posterior' needs an environment with a finite MDP, such as "
            f"{envs.GRIDWORLD}; got env={config.env!r}. Use observer='learned'"
        )
    networks = make_networks(
        config, env.observation_space(env_params), env.action_space(env_params)
    )
    world = World(env, env_params, int(env_params.max_steps_in_episode), mdp)
    return Task(config, world, networks, observer_reward)


def check_min_return(task: Task, hypers: Hypers) -> None:
    """That experts can keep the return that they are to keep.

    Raises:
      SettingError: ``min_return`` is more than an episode can pay.
    """
    if hypers.min_return is None:
        return
    highest = envs.highest_return(task.world.env, task.world.params, task.world.mdp)
    # The best return of a finite MDP is a sum in single precision.
    if highest is not None and hypers.min_return > highest + 1e-4 * max(1.0, abs(highest)):
        raise SettingError(
            f"min_return must be at most {highest:.4g}, which is what an episode of "
            f"{task.config.env} can pay; got {hypers.min_return:g}"
        )


def steps_of_update(task: Task) -> int:
    """Environment steps of one update of one seed, the experts' and the observer's.

    With pg those that pad episodes to the limit are among them.
    """
    config = task.config
    streams = config.num_experts * config.envs_per_expert
    streams *= 1 if config.observer == "none" else 2
    length = task.world.horizon if config.algorithm == "pg" else config.rollout_length
    return streams * length


def optimizer(hypers: Hypers, num_updates: int | None = None) -> optax.GradientTransformation:
    """Adam for heads and critics, each at its own rate; the heads' gradient is clipped.

    Rebuilt from the traced ``hypers`` at every use; only its state is carried.

    Args:
      hypers: rates, their final share, clipping norm.
      num_updates: length of the linear decay; None keeps the rates constant.
    """

    def decayed(rate):
        fall = 0.0 if num_updates is None else (1.0 - hypers.lr_end_fraction) * rate
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
      expert_returns: undiscounted means over this update's episodes, or nan where an expert ended
        none. Their noise needs no further averaging: the logarithm of a multiplier sums it over
        updates.
      hypers: α, the step size η, and the bound.
    """
    if state.multipliers is None or hypers.min_return is None:
        return state
    expert_returns = jnp.where(jnp.isnan(expert_returns), hypers.min_return, expert_returns)
    multipliers = objective.dual_step(
        state.multipliers,
        expert_returns,
        hypers.min_return,
        hypers.multiplier_rate,
        hypers.max_multiplier,
    )
    return dataclasses.replace(state, multipliers=multipliers)


def expert_log_weights(task: Task, params: EnsembleParams) -> LogWeightsFn:
    """Weights log w_c as a function of the observation, held constant in the gradient."""
    num_experts = task.networks.num_experts
    if params.classifier is not None:
        classifier = jax.lax.stop_gradient(params.classifier)
        return task.networks.tabulate(
            lambda observation: task.networks.expert_log_weights(classifier, observation)
        )
    if task.config.observer != "posterior" or task.world.mdp is None:
        uniform = mixture.uniform_log_weights(num_experts)
        return lambda observation: uniform
    log_probs = task.networks.tabulate_experts(params.heads)
    weights = tabular.observer_weights(task.world.mdp, jnp.exp(log_probs), "posterior")
    weights = jax.lax.stop_gradient(weights)
    return lambda state: weights[state]
