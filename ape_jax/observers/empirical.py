"""A finite world as demonstrations show it: what each action that was seen led to."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ape_jax.core.distributions import Categorical
from ape_jax.core.mixture import LOG_FLOOR
from ape_jax.core.policies import TablePolicy
from ape_jax.core.tabular import exact_einsum
from ape_jax.demonstrations import episodes
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.types import PRNGKey

LEAST_COUNT = 30
"""Times that an action has to be seen where chance decides what it leads to."""


class EmpiricalModel(NamedTuple):
    """Means over the demonstrated steps of each state and action; zero where there was none."""

    transition: Float[Array, "S A S"]
    """Share of the steps that led to a state from where the episode went on."""
    reward: Float[Array, "S A"]
    seen: Bool[Array, "S A"]
    """The actions whose consequences were seen, often enough to be trusted."""


def empirical_model(
    demonstrations: Demonstrations, num_states: int, num_actions: int
) -> EmpiricalModel:
    """Count what followed each action. A step without a known end or successor is left out.

    If some action led to different states, chance decides in this world, and an action that was
    seen a few times may have been lucky: the best of many such actions would be a mirage. There an
    action is trusted if it was seen ``LEAST_COUNT`` times, or more often than others in its state.
    """
    after = episodes.following(demonstrations)
    counts = (after.known | after.ended).astype(jnp.float32)
    pair = demonstrations.observation * num_actions + demonstrations.action
    num_pairs = num_states * num_actions

    def total(weights):
        return jax.ops.segment_sum(weights, pair, num_segments=num_pairs)

    goes_on = jnp.where(after.ended, 0.0, counts)
    moves = jax.ops.segment_sum(
        goes_on, pair * num_states + after.observation, num_segments=num_pairs * num_states
    )
    shape = (num_states, num_actions)
    times = total(counts).reshape(shape)
    mean = 1.0 / jnp.maximum(times, 1.0)
    moves = moves.reshape(*shape, num_states)
    ends = total(counts - goes_on).reshape(shape)
    by_chance = jnp.any(jnp.maximum(jnp.max(moves, axis=-1), ends) < times)
    often = (times >= LEAST_COUNT) | (times == jnp.max(times, axis=-1, keepdims=True))
    return EmpiricalModel(
        transition=moves * mean[..., None],
        reward=total(counts * demonstrations.reward).reshape(shape) * mean,
        seen=(times > 0) & (often | ~by_chance),
    )


def action_values(
    model: EmpiricalModel, reward: Float[Array, "S A"], num_steps: int
) -> Float[Array, "S A"]:
    """Q(s, a) of the best policy that takes actions that were seen, by backward induction.

    It is −∞ for an action that was not seen. A state in which none was seen is worth as much as
    the worst that can happen: the lowest reward in each step that is left, or zero if that is less.
    """
    worst = jnp.minimum(jnp.min(jnp.where(model.seen, reward, jnp.inf)), 0.0)
    known = jnp.any(model.seen, axis=-1)

    def values_of(values):
        values = reward + exact_einsum("sat,t->sa", model.transition, values)
        return jnp.where(model.seen, values, -jnp.inf)

    def backward(values, step):
        best = jnp.max(values_of(values), axis=-1)
        return jnp.where(known, best, worst * (step + 1)), None

    start = jnp.zeros(len(reward))
    values, _ = jax.lax.scan(backward, start, jnp.arange(num_steps - 1, dtype=jnp.float32))
    return values_of(values)


def greedy_table(values: Float[Array, "S A"]) -> TablePolicy:
    """The actions of highest value, evenly; all actions where every value is −∞."""
    best = values >= jnp.max(values, axis=-1, keepdims=True) - 1e-4
    probs = best / jnp.sum(best, axis=-1, keepdims=True)
    return TablePolicy(Categorical(jnp.maximum(jnp.log(probs), LOG_FLOOR)))


@dataclasses.dataclass(frozen=True)
class Planner:
    """Base of the attackers that act best in the finite world that demonstrations show."""

    num_states: int
    num_actions: int
    horizon: int
    """Time limit of an episode, in steps."""

    def rewards(self, model: EmpiricalModel) -> Float[Array, "S A"]:
        """The rewards of which the sum is to be large."""
        raise NotImplementedError

    def fit(self, key: PRNGKey, demonstrations: Demonstrations) -> TablePolicy:
        """Estimate the world, and take the actions of highest value in it."""
        del key
        model = empirical_model(demonstrations, self.num_states, self.num_actions)
        return greedy_table(action_values(model, self.rewards(model), self.horizon))
