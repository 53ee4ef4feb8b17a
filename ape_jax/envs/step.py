"""The one step of all environments side by side, under every rollout."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Key, Shaped

from ape_jax.core import random
from ape_jax.envs.world import World
from ape_jax.types import Transition


class Standing(NamedTuple):
    """Where environments are between two steps."""

    observation: Shaped[Array, "N ..."]
    state: Any
    """The environments' own states, [N, …]."""


def reset(world: World, keys: Key[Array, " N"]) -> Standing:
    """The start of one episode for each key."""
    keys = random.written_out(keys)
    return Standing(*jax.vmap(world.env.reset_env, in_axes=(0, None))(keys, world.params))


def step(
    world: World, keys: Key[Array, " N"], at: Standing, actions: Shaped[Array, "N ..."]
) -> tuple[Transition, Standing]:
    """One step of every environment: transitions [N], all valid, and where they then are."""
    observations, states, rewards, terminated, _ = jax.vmap(
        world.env.step_env, in_axes=(0, 0, 0, None)
    )(random.written_out(keys), at.state, world.clip_action(actions), world.params)
    truncated = jax.vmap(world.env.is_truncated, in_axes=(0, None))(states, world.params)
    transition = Transition(
        observation=at.observation,
        action=actions,
        reward=jnp.asarray(rewards, jnp.float32),
        terminated=terminated,
        truncated=truncated & ~terminated,
        mask=jnp.ones_like(terminated),
        next_observation=observations,
    )
    return transition, Standing(observations, states)


def hold(
    mask: Bool[Array, " N"], transition: Transition, at: Standing, moved: Standing
) -> tuple[Transition, Standing]:
    """Step only the episodes whose mask is True; the others stay where they are, without reward."""
    held = _select(mask, moved, at)
    transition = transition._replace(
        reward=jnp.where(mask, transition.reward, 0.0),
        terminated=mask & transition.terminated,
        truncated=mask & transition.truncated,
        mask=mask,
        next_observation=held.observation,
    )
    return transition, held


def restart(
    world: World, keys: Key[Array, " N"], ended: Bool[Array, " N"], moved: Standing
) -> Standing:
    """New episodes in place of those that have ended."""
    return _select(ended, reset(world, keys), moved)


def _select(mask: Bool[Array, " N"], chosen: Standing, other: Standing) -> Standing:
    return jax.tree.map(
        lambda x, y: jnp.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, y), chosen, other
    )


def broadcast(tree: Any, size: int) -> Any:
    """The same values for each of so many episodes."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (size, *jnp.shape(x))), tree)
