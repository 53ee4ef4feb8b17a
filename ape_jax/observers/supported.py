"""Policies that take the action of the highest score, among those that demonstrators take."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Shaped

from ape_jax.core import mixture
from ape_jax.core.distributions import Categorical
from ape_jax.core.policies import MemorylessPolicy, TablePolicy
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.networks import Networks
from ape_jax.observers import fitting, values
from ape_jax.observers.behaviour_cloning import count
from ape_jax.observers.fitting import Training
from ape_jax.types import Params, PRNGKey

HELD_OUT_STEPS = 4096
"""Number of held-out steps that say when a fit was best."""

Targets = Callable[[Int[Array, " B"]], tuple[Float[Array, " B"], Float[Array, " B"]]]
"""Numbers of steps to what a network is fitted to there, about one in size, and to its weight."""


def best(scores: Float[Array, " A"], allowed: Bool[Array, " A"]) -> Categorical:
    """The allowed actions of the highest score, evenly; all actions where none is allowed."""
    allowed = allowed | ~jnp.any(allowed)
    highest = jnp.max(jnp.where(allowed, scores, -jnp.inf))
    chosen = allowed & (scores >= highest)
    log_probs = jnp.where(chosen, -jnp.log(jnp.sum(chosen)), mixture.LOG_FLOOR)
    return Categorical(log_probs)


@struct.dataclass
class SupportedPolicy(MemorylessPolicy):
    """The action of the highest score, among those that a clone takes often enough."""

    scores: Params
    """A head whose outputs are the scores of actions."""
    clone: Params
    """A head that clones the demonstrations."""
    networks: Networks = struct.field(pytree_node=False)
    least_share: float = struct.field(pytree_node=False)
    """An action counts if it has this share of the most probable action's probability."""

    def distribution(self, observation: Shaped[Array, "..."]) -> Categorical:
        """The best supported actions, evenly."""
        log_probs = self.networks.log_probs(self.clone, observation)
        supported = log_probs >= jnp.max(log_probs) + jnp.log(self.least_share)
        return best(jnp.asarray(self.networks.head.apply(self.scores, observation)), supported)


@dataclasses.dataclass(frozen=True)
class Supported(Training):
    """Base of the attackers that score the actions of demonstrators, and take the best.

    Scores of actions that nobody takes would be guesses, so they are left out. Where observations
    are finite, nothing is fitted: the score of an action in a state is the mean over the steps
    where it was taken there.
    """

    networks: Networks
    """Heads of this kind score the actions, and clone the demonstrations."""
    _: dataclasses.KW_ONLY
    num_updates: int = 6000
    batch_size: int = 256
    least_share: float = 0.1
    """Least probability of an action that may be taken, as a share of the clone's largest one."""

    def fit_scores(
        self, key: PRNGKey, networks: Networks, demonstrations: Demonstrations, targets: Targets
    ) -> SupportedPolicy:
        """Fit the scores of the actions that were taken, and the clone that says which count.

        Where no target has a weight, all actions that count are alike.
        """
        keys = jax.random.split(key, 4)
        of_actions = values.ActionValues(networks)
        shown, kept = fitting.split(demonstrations)
        kept_rows = fitting.draw(keys[2], kept, HELD_OUT_STEPS)

        def loss(params, rows):
            (scores, clone), (wanted, weights) = params, targets(rows)
            taken = (demonstrations.observation[rows], demonstrations.action[rows])
            errors = jnp.square(of_actions(scores, *taken) - wanted)
            return jnp.mean(weights * errors - values.log_probs(networks, clone, *taken))

        start = (
            of_actions.init(keys[0], demonstrations),
            values.init(keys[1], networks.head, demonstrations),
        )
        scores, clone = self.minimize(
            keys[3],
            start,
            lambda params, key: loss(params, fitting.draw(key, shown, self.batch_size)),
            lambda params: loss(params, kept_rows),
        )
        weights = targets(jnp.arange(len(shown)))[1]
        scores = jax.tree.map(lambda x: jnp.where(jnp.any(weights > 0), x, 0.0), scores)
        return SupportedPolicy(scores, clone, networks, self.least_share)

    def tabulate_scores(
        self,
        demonstrations: Demonstrations,
        scores: Float[Array, " N"],
        weights: Float[Array, " N"],
    ) -> TablePolicy:
        """The best actions of each state, where each step has a score and a weight.

        A state without any score gets the actions that were shown there, evenly.
        """

        def totals_of(weights):
            assert self.networks.num_states is not None
            sizes = (self.networks.num_states, self.networks.num_actions)
            return count(demonstrations, weights, *sizes)

        shown, totals = totals_of(None) > 0, totals_of(weights)
        means = totals_of(weights * scores) / jnp.maximum(totals, 1e-9)
        scored = totals > 0
        allowed = jnp.where(jnp.any(scored, axis=-1, keepdims=True), scored, shown)
        return TablePolicy(jax.vmap(best)(jnp.where(scored, means, 0.0), allowed))
