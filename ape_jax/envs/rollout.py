"""The loops over time: all environments advance side by side, by the one ``step``.

An episode that has ended is either held where it is (``episodes``, ``ensemble_episodes``,
``episode_returns``) or followed by a new one (``collect_rollout``, ``stream``).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from ape_jax.core import platform, random
from ape_jax.core.distributions import Distribution, Sampler
from ape_jax.core.policies import TablePolicy
from ape_jax.envs.step import Standing, broadcast, hold, reset, restart, step
from ape_jax.envs.world import World
from ape_jax.types import Policy, Transition

Actors = Callable[
    [Any, Shaped[Array, "N ..."], Shaped[Array, "N ..."], Float[Array, "N U"]], tuple[Any, Any]
]
"""The policies of N environments at once: carries, observations, last actions and uniform numbers
to the next carries and to what is drawn."""


def draw_action(acts: Sampler, uniforms: Float[Array, " U"]) -> Shaped[Array, "..."]:
    """An action from one distribution."""
    return acts.sample(uniforms)


def draw_with_log_prob(
    acts: Distribution, uniforms: Float[Array, " U"]
) -> tuple[Shaped[Array, "..."], Float[Array, ""]]:
    """An action from one distribution, and its log-probability."""
    action = acts.sample(uniforms)
    return action, acts.log_prob(action)


def everywhere(policy: Policy) -> Actors:
    """The same policy in all environments."""

    def act(carry, observation, last_action, uniforms):
        carry, acts = policy(carry, observation, last_action)
        return carry, draw_action(acts, uniforms)

    return jax.vmap(act)


def in_blocks(
    experts: Policy,
    num_experts: int,
    block: int,
    observer: Policy | None,
    draw: Callable = draw_action,
) -> Actors:
    """Policies without memory: stacked experts [E] in their blocks, then the observer.

    Expert c acts in the environments from c B to (c + 1) B, with B the size of a block. The
    observer acts in all others; it is None where there are none.
    """

    def drawing(policy):
        def act(observation, last_action, uniforms):
            return draw(policy((), observation, last_action)[1], uniforms)

        return jax.vmap(act)

    def actors(carries, *inputs):
        own, others = _split(inputs, num_experts, block)
        drawn = jax.vmap(lambda policy, *own: drawing(policy)(*own))(experts, *own)
        drawn = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), drawn)
        if observer is None:
            return carries, drawn
        return carries, jax.tree.map(
            lambda *x: jnp.concatenate(x), drawn, drawing(observer)(*others)
        )

    return actors


def by_number(experts: TablePolicy, observer: TablePolicy, numbers: Int[Array, " N"]) -> Actors:
    """The same as ``in_blocks`` for tables, as one table: a step is then a single look-up.

    Args:
      experts: tables [E, S, …].
      observer: one table [S, …].
      numbers: number of the policy that acts in each environment; E is the observer.
    """
    tables = jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), experts.table, observer.table)

    def actors(carries, observations, last_actions, uniforms):
        acts = jax.tree.map(lambda x: x[numbers, observations], tables)
        return carries, jax.vmap(draw_action)(acts, uniforms)

    return actors


def _split(tree: Any, num_experts: int, block: int) -> tuple[Any, Any]:
    """The experts' own entries [E, B, …], and those of the observer, of entries [N, …]."""
    num_own = num_experts * block
    own = jax.tree.map(lambda x: x[:num_own].reshape(num_experts, block, *x.shape[1:]), tree)
    return own, jax.tree.map(lambda x: x[num_own:], tree)


def episodes(keys: Key[Array, " N"], policy: Policy, world: World) -> Transition:
    """One episode of a policy for each key, from a fresh start.

    An episode that reaches ``world.horizon`` before its own limit is cut there, without being
    marked truncated.

    Returns:
      Transitions [T, N], T the horizon. After the end of an episode the last state is repeated
      with reward zero, and its steps are not valid.
    """
    actors = everywhere(world.for_sampling(policy))
    return jax.lax.scan(*_prepare(keys, actors, policy.initial_carry(), world))[1]


def ensemble_episodes(
    expert_keys: Key[Array, "E B"],
    observer_keys: Key[Array, " N"],
    experts: Policy,
    observer: Policy,
    world: World,
) -> tuple[Transition, Transition]:
    """Episodes of stacked experts and of the observer: transitions [T, E, B] and [T, N].

    No policy may have memory. All episodes advance in one loop over time. Each expert acts in its
    own block of environments: the draw of the expert is stratified. Probabilities are rounded to
    multiples of 2^-16.
    """
    num_experts, block = expert_keys.shape
    keys = jnp.concatenate([expert_keys.reshape(-1), observer_keys])
    experts, observer = jax.vmap(world.for_sampling)(experts), world.for_sampling(observer)
    # Where both are tables, one look-up a step serves all environments, which is faster.
    if isinstance(experts, TablePolicy) and isinstance(observer, TablePolicy):
        numbers = jnp.repeat(jnp.arange(num_experts), block)
        numbers = jnp.append(numbers, jnp.full(observer_keys.shape[0], num_experts))
        actors = by_number(experts, observer, numbers)
    else:
        actors = in_blocks(experts, num_experts, block, observer)
    _, steps = jax.lax.scan(*_prepare(keys, actors, (), world, random.uniforms_of_sixteen_bits))
    return jax.vmap(lambda now: _split(now, num_experts, block))(steps)


def episode_returns(keys: Key[Array, " N"], policy: Policy, world: World) -> Float[Array, " N"]:
    """Undiscounted returns of ``episodes``, in a loop that ends with the last of them."""
    actors = everywhere(world.for_sampling(policy))
    advance, start, draws = _prepare(keys, actors, policy.initial_carry(), world)

    def is_running(loop):
        time, running, _ = loop
        return (time < world.horizon) & jnp.any(running.mask)

    def advance_and_sum(loop):
        time, running, returns = loop
        running, steps = advance(running, jax.tree.map(lambda x: x[time], draws))
        return time + 1, running, returns + steps.reward

    loop = (0, start, jnp.zeros(keys.shape[0]))
    return jax.lax.while_loop(is_running, advance_and_sum, loop)[-1]


class _Running(NamedTuple):
    """Episodes side by side, between two steps."""

    at: Standing
    carries: Any
    last_actions: Shaped[Array, "N ..."]
    mask: Bool[Array, " N"]
    """The episodes that have not ended."""


def _prepare(
    keys: Key[Array, " N"],
    actors: Actors,
    carry: Any,
    world: World,
    draw: Callable = random.uniforms,
):
    """Arguments of ``jax.lax.scan`` for one episode of each key: step, start, random draws [T, …].

    The step holds the episodes that have ended.
    """
    # Without the barrier the split is fused into, and repeated for, every number drawn from it.
    start_keys, action_keys, move_keys = jax.lax.optimization_barrier(random.split(keys, 3))
    num_episodes = keys.shape[0]
    start = _Running(
        at=reset(world, start_keys),
        carries=broadcast(carry, num_episodes),
        last_actions=broadcast(world.no_action, num_episodes),
        mask=jnp.ones(num_episodes, bool),
    )
    uniforms = draw(action_keys, world.horizon * world.num_uniforms)
    uniforms = uniforms.reshape(world.horizon, -1)

    def advance(running: _Running, draws) -> tuple[_Running, Transition]:
        uniforms, keys = draws
        at = running.at
        uniforms = _of_step(uniforms, num_episodes)
        carries, actions = actors(running.carries, at.observation, running.last_actions, uniforms)
        transition, moved = step(world, keys, at, actions)
        transition, at = hold(running.mask, transition, at, moved)
        mask = running.mask & ~transition.terminated & ~transition.truncated
        return _Running(at, carries, actions, mask), transition

    return advance, start, (uniforms, random.split(move_keys, world.horizon))


def _uniform_numbers(keys: Key[Array, " N"], num_steps: int, size: int) -> Float[Array, "T UN"]:
    """The numbers in [0, 1) that the actions of so many steps are drawn from, U for each.

    They come in rows. ``_of_step`` arranges a row within the loop over time, without a copy.
    """
    return random.uniforms(keys, num_steps * size).reshape(num_steps, -1)


def _of_step(row: Float[Array, " UN"], num_environments: int) -> Float[Array, "N U"]:
    """The uniform numbers of one step."""
    return row.reshape(-1, num_environments).T


class EnvLoopState(NamedTuple):
    """Environments between two rollouts of endless streams of episodes."""

    observation: Shaped[Array, "N ..."]
    state: Any
    """The environments' own states, [N, …]."""
    episode_return: Float[Array, " N"]
    """Undiscounted return of the episode so far."""
    discounted_return: Float[Array, " N"]
    """Σ_k γ^k r_{t−k} of the episode so far; its standard deviation is the scale of rewards."""


def start_streams(keys: Key[Array, " N"], world: World) -> EnvLoopState:
    """Fresh episodes, one for each key."""
    zeros = jnp.zeros(keys.shape[0])
    return EnvLoopState(*reset(world, keys), zeros, zeros)


class Rollout(NamedTuple):
    """Returns and log-probabilities of a rollout, beside its transitions [T, N]."""

    episode_return: Float[Array, "T N"]
    """Undiscounted return of the episode up to and including this step."""
    discounted_return: Float[Array, "T N"]
    """Σ_k γ^k r_{t−k} of the episode up to and including this step."""
    log_prob: Float[Array, "T N"]
    """Log-probability of the action under the policy that took it."""


def collect_rollout(
    keys: Key[Array, " N"],
    state: EnvLoopState,
    actors: Actors,
    world: World,
    num_steps: int,
    gamma: Float[Array, ""] | float,
) -> tuple[EnvLoopState, Transition, Rollout]:
    """Continue streams of episodes for T steps: where an episode ends, the next begins.

    The policies have no memory, and draw by ``draw_with_log_prob``. γ is that of the discounted
    returns. All transitions [T, N] are valid, and hold the actions as they were drawn.
    """
    action_keys, move_keys = jax.lax.optimization_barrier(random.split(keys, 2))
    uniforms = _uniform_numbers(action_keys, num_steps, world.num_uniforms)
    moves = random.split(move_keys, 2 * num_steps)
    no_actions = broadcast(world.no_action, keys.shape[0])

    def advance(state, draws):
        uniforms, step_keys, reset_keys = draws
        _, (actions, log_probs) = actors(
            (), state.observation, no_actions, _of_step(uniforms, len(no_actions))
        )
        at = Standing(state.observation, state.state)
        transition, moved = step(world, step_keys, at, actions)
        episode_return = state.episode_return + transition.reward
        discounted_return = gamma * state.discounted_return + transition.reward
        ended = transition.terminated | transition.truncated
        going_on = 1.0 - ended.astype(jnp.float32)
        state = EnvLoopState(
            *restart(world, reset_keys, ended, moved),
            episode_return * going_on,
            discounted_return * going_on,
        )
        return state, (transition, Rollout(episode_return, discounted_return, log_probs))

    draws = (uniforms, moves[:num_steps], moves[num_steps:])
    unroll = platform.forms().unroll
    state, (transitions, rollout) = jax.lax.scan(advance, state, draws, unroll=unroll)
    return state, transitions, rollout


def stream(
    keys: Key[Array, " N"],
    act: Callable[[Shaped[Array, "..."], Int[Array, ""]], Sampler],
    num_experts: int,
    world: World,
    num_steps: int,
) -> tuple[Transition, Int[Array, "T N"]]:
    """Streams of episodes of an ensemble; an expert is drawn for each episode.

    ``act`` maps one observation and the number of an expert to that expert's distribution. All
    transitions [T, N] are valid, and hold the actions as the environment was given them. With them
    comes the number of the expert that acted in each step.
    """
    # Parameters are arrays, as in gymnax's own ``step``: numbers of Python are rounded less often.
    with jax.ensure_compile_time_eval():
        world = dataclasses.replace(world, params=jax.tree.map(jnp.asarray, world.params))
    start_keys, draw_keys, move_keys = random.split(keys, 3)
    shape = (num_steps + 1, world.num_uniforms + 1)
    draws = jax.vmap(lambda key: jax.random.uniform(key, shape), out_axes=1)(draw_keys)

    def pick_experts(uniforms):
        return jnp.minimum((uniforms * num_experts).astype(jnp.int32), num_experts - 1)

    def advance(state, draws):
        at, experts = state
        uniforms, keys = draws
        step_keys, reset_keys = random.split(keys, 2)
        actions = jax.vmap(lambda observation, expert, x: act(observation, expert).sample(x))(
            at.observation, experts, uniforms[:, :-1]
        )
        actions = world.clip_action(actions)
        transition, moved = step(world, step_keys, at, actions)
        ended = transition.terminated | transition.truncated
        next_experts = jnp.where(ended, pick_experts(uniforms[:, -1]), experts)
        return (restart(world, reset_keys, ended, moved), next_experts), (transition, experts)

    start = (reset(world, start_keys), pick_experts(draws[-1, :, -1]))
    _, steps = jax.lax.scan(advance, start, (draws[:-1], random.split(move_keys, num_steps)))
    return steps
