"""PPO as it is usually written in JAX, in one file: the yardstick that ours is timed against.

Rollout, advantages, epochs and minibatches are nested ``lax.scan`` in one jitted function, around
vmapped gymnax environments that reset themselves; networks, constants and details are those of the
common implementations. It is written to be what most people run, not to be fast: nothing is done
that one would not do in a first version, and nothing is left out to look slow. It therefore shares
no code with ``ape_jax``, and neither its shortcuts nor its corrections. In particular a time limit
counts as an end like any other, so that no value is bootstrapped from the last observation.

    python -m benchmarks.plain_ppo
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import flax.linen as nn
import gymnax
import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState
from gymnax.environments import spaces
from gymnax.wrappers import FlattenObservationWrapper, LogWrapper
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

Train = Callable[[PRNGKeyArray], tuple[Any, dict[str, Array]]]


class ActorCritic(nn.Module):
    """Logits of a policy and a value, from two networks that share nothing."""

    num_actions: int

    @nn.compact
    def __call__(self, observations: Float[Array, "*B D"]):
        """Return the logits [*B, A] and the values [*B]."""

        def network(outputs: int, scale: float) -> Array:
            hidden = observations
            for _ in range(2):
                hidden = nn.tanh(_dense(64, 2**0.5)(hidden))
            return _dense(outputs, scale)(hidden)

        return network(self.num_actions, 0.01), network(1, 1.0).squeeze(-1)


def _dense(features: int, scale: float) -> nn.Dense:
    return nn.Dense(features, kernel_init=nn.initializers.orthogonal(scale))


class Transition(NamedTuple):
    """One step of every environment; axes [T, N] once stacked, [B] in a minibatch."""

    observation: Float[Array, "*B D"]
    action: Int[Array, "*B"]
    log_prob: Float[Array, "*B"]
    value: Float[Array, "*B"]
    reward: Float[Array, "*B"]
    done: Bool[Array, "*B"]
    """Whether the step ended the episode, by termination or by its time limit."""
    episode_return: Float[Array, "*B"]
    """Undiscounted return of the latest finished episode; 0 before there is one."""


def make_train(
    env_name: str,
    num_envs: int,
    *,
    num_updates: int,
    num_steps: int = 128,
    epochs: int = 4,
    minibatches: int = 4,
    learning_rate: float = 2.5e-4,
    gamma: float = 0.99,
    gae_lambda: float = 0.95,
    clip: float = 0.2,
    value_coefficient: float = 0.5,
    entropy_coefficient: float = 0.01,
    max_grad_norm: float = 0.5,
) -> Train:
    """Build the jitted function that trains one run from its key.

    Args:
      env_name: a gymnax environment of discrete actions.
      num_envs: environments N stepped side by side.
      num_updates: rollouts, each followed by ``epochs * minibatches`` steps of Adam.
      num_steps: steps T of every environment in a rollout.
      epochs: passes over a rollout.
      minibatches: parts of a pass; they must divide N T.
      learning_rate: Adam's at the start; it falls linearly to 0.
      gamma: gamma a step.
      gae_lambda: of generalised advantage estimation.
      clip: of the probability ratio around 1, and of the value around its old one.
      value_coefficient: of the value loss.
      entropy_coefficient: of the entropy.
      max_grad_norm: gradients are scaled down to this global norm.

    Returns:
      ``train(key) -> (params, metrics)``; metrics are means over an update, with axes [updates].
    """
    if num_envs * num_steps % minibatches:
        raise ValueError(
            f"minibatches must divide num_envs * num_steps = {num_envs * num_steps}; "
            f"got {minibatches}"
        )
    env, env_params = gymnax.make(env_name)
    if not isinstance(env.action_space(env_params), spaces.Discrete):
        raise ValueError(f"env_name must name an environment of discrete actions; got {env_name!r}")
    env = LogWrapper(FlattenObservationWrapper(env))
    network = ActorCritic(env.action_space(env_params).n)
    reset = jax.vmap(env.reset, in_axes=(0, None))
    step = jax.vmap(env.step, in_axes=(0, 0, 0, None))

    def schedule(count):
        update = count // (epochs * minibatches)
        return learning_rate * (1.0 - update / num_updates)

    def env_step(carry, _):
        params, env_state, observation, key = carry
        key, key_action, key_step = jax.random.split(key, 3)
        logits, value = network.apply(params, observation)
        action = jax.random.categorical(key_action, logits)
        log_prob = log_prob_of(logits, action)
        next_observation, env_state, reward, terminated, truncated, info = step(
            jax.random.split(key_step, num_envs), env_state, action, env_params
        )
        transition = Transition(
            observation,
            action,
            log_prob,
            value,
            reward,
            jnp.logical_or(terminated, truncated),
            info["returned_episode_returns"],
        )
        return (params, env_state, next_observation, key), transition

    def advantages_of(rollout, last_value):
        def backward(carry, transition):
            advantage, next_value = carry
            not_done = 1.0 - transition.done
            delta = transition.reward + gamma * next_value * not_done - transition.value
            advantage = delta + gamma * gae_lambda * not_done * advantage
            return (advantage, transition.value), advantage

        start = (jnp.zeros_like(last_value), last_value)
        _, advantages = jax.lax.scan(backward, start, rollout, reverse=True, unroll=16)
        return advantages

    def loss(params, batch, advantages, targets):
        logits, value = network.apply(params, batch.observation)
        log_probs = jax.nn.log_softmax(logits)
        ratio = jnp.exp(log_prob_of(logits, batch.action) - batch.log_prob)
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        clipped_ratio = jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
        policy_loss = -jnp.minimum(ratio * advantages, clipped_ratio * advantages).mean()

        clipped_value = batch.value + jnp.clip(value - batch.value, -clip, clip)
        errors = jnp.maximum(jnp.square(value - targets), jnp.square(clipped_value - targets))
        value_loss = 0.5 * errors.mean()

        entropy = -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1).mean()
        total = policy_loss + value_coefficient * value_loss - entropy_coefficient * entropy
        return total, {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}

    def minibatch(state, data):
        gradients, losses = jax.grad(loss, has_aux=True)(state.params, *data)
        return state.apply_gradients(grads=gradients), losses

    def epoch(carry, _):
        state, data, key = carry
        key, key_order = jax.random.split(key)
        order = jax.random.permutation(key_order, num_envs * num_steps)
        batches = jax.tree.map(
            lambda x: x[order].reshape(minibatches, -1, *x.shape[1:]),
            data,
        )
        state, losses = jax.lax.scan(minibatch, state, batches)
        return (state, data, key), losses

    def update(carry, _):
        state, env_state, observation, key = carry
        start = (state.params, env_state, observation, key)
        (_, env_state, observation, key), rollout = jax.lax.scan(env_step, start, None, num_steps)
        _, last_value = network.apply(state.params, observation)
        advantages = advantages_of(rollout, last_value)
        data = jax.tree.map(
            lambda x: x.reshape(num_envs * num_steps, *x.shape[2:]),
            (rollout, advantages, advantages + rollout.value),
        )
        (state, _, key), losses = jax.lax.scan(epoch, (state, data, key), None, epochs)
        metrics = {
            "episode_return": rollout.episode_return.mean(),
            **jax.tree.map(jnp.mean, losses),
        }
        return (state, env_state, observation, key), metrics

    def train(key):
        key, key_params, key_reset = jax.random.split(key, 3)
        observation, env_state = reset(jax.random.split(key_reset, num_envs), env_params)
        state = TrainState.create(
            apply_fn=network.apply,
            params=network.init(key_params, observation),
            tx=optax.chain(
                optax.clip_by_global_norm(max_grad_norm), optax.adam(schedule, eps=1e-5)
            ),
        )
        carry = (state, env_state, observation, key)
        (state, *_), metrics = jax.lax.scan(update, carry, None, num_updates)
        return state.params, metrics

    return jax.jit(train)


def log_prob_of(logits: Float[Array, "*B A"], action: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """Log-probability of an action under a policy's logits."""
    log_probs = jax.nn.log_softmax(logits)
    return jnp.take_along_axis(log_probs, action[..., None], axis=-1).squeeze(-1)


def final_return(metrics: dict[str, Array]) -> float:
    """Mean of the episodes' return over the last tenth of the updates."""
    returns = metrics["episode_return"]
    return float(returns[-max(1, len(returns) // 10) :].mean())


def main() -> None:
    """Time CartPole-v1 with few and with many environments, and print what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--env", default="CartPole-v1", help="a gymnax environment")
    parser.add_argument("--steps", type=int, default=500_000, help="environment steps of a run")
    parser.add_argument("--envs", type=int, nargs="+", default=[4, 64], help="side by side")
    parser.add_argument("--seeds", type=int, default=3, help="runs timed, one after another")
    given = parser.parse_args()

    print(f"{given.env}, {jax.devices()[0].device_kind}, jax {jax.__version__}")
    for num_envs in given.envs:
        num_steps = 128
        num_updates = max(1, given.steps // (num_envs * num_steps))
        train = make_train(given.env, num_envs, num_updates=num_updates, num_steps=num_steps)
        started = time.perf_counter()
        program = train.lower(jax.random.key(0)).compile()
        compile_seconds = time.perf_counter() - started

        speeds, finals = [], []
        for seed in range(given.seeds):
            key = jax.block_until_ready(jax.random.key(seed))
            started = time.perf_counter()
            _, metrics = jax.block_until_ready(program(key))
            seconds = time.perf_counter() - started
            speeds.append(num_updates * num_envs * num_steps / seconds)
            finals.append(final_return(metrics))
        print(
            f"{num_envs} environments, {num_updates} updates: "
            f"{median(speeds):,.0f} steps/s ({min(speeds):,.0f} to {max(speeds):,.0f}), "
            f"compile {compile_seconds:.1f} s, "
            f"final return {', '.join(f'{x:.0f}' for x in finals)}"
        )


if __name__ == "__main__":
    main()
