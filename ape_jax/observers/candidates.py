"""Several policies of which one is deployed: the likeliest, or the best of those that are tried."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from ape_jax.core.mixture import LOG_FLOOR
from ape_jax.demonstrations import episodes
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.observers import fitting
from ape_jax.types import Policy

SCORED_STEPS = 20_000
"""Held-out steps that candidates are compared on, at most."""


@struct.dataclass
class Candidates:
    """Policies without memory; as a policy it is the chosen one."""

    policies: Any
    """Stacked [M, …]."""
    chosen: Int[Array, "..."]
    """Index of the one that held-out actions are likeliest under."""

    def initial_carry(self) -> tuple[()]:
        """Nothing is remembered."""
        return ()

    def __call__(self, carry, observation, last_action) -> tuple[Any, Any]:
        """The distribution of the chosen policy."""
        chosen = jax.tree.map(lambda x: x[self.chosen], self.policies)
        return chosen(carry, observation, last_action)


def likeliest(policies: Any, demonstrations: Demonstrations) -> Candidates:
    """Choose among policies [M, …] by the likelihood of held-out actions.

    Args:
      policies: policies without memory.
      demonstrations: the steps [N] that they were fitted to, of which every tenth episode was
        held out if the fit is by a network; counts use all of them.
    """
    _, weights = fitting.split(demonstrations)
    rows = jnp.argsort(-weights)[:SCORED_STEPS]
    part, weights = jax.tree.map(lambda x: x[rows], (demonstrations, weights))
    last_actions = episodes.last_actions(demonstrations)[rows]

    def score(policy: Policy) -> Float[Array, ""]:
        def log_prob(observation, last_action, action):
            return policy((), observation, last_action)[1].log_prob(action)

        log_probs = jax.vmap(log_prob)(part.observation, last_actions, part.action)
        return jnp.average(jnp.maximum(log_probs, LOG_FLOOR), weights=weights)

    return Candidates(policies, jnp.argmax(jax.lax.map(score, policies)))


def stack(policies: Sequence[Policy]) -> Any:
    """Policies of one kind, stacked [M, …]."""
    return jax.tree.map(lambda *x: jnp.stack([jnp.asarray(leaf) for leaf in x]), *policies)
