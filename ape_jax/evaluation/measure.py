"""Measurements of every seed in an audit: the ensemble itself, and the clone of each observer.

The functions take arrays with a leading axis K, one entry for each seed, and are jitted. The task,
the effort and the name of the observer are static.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ape_jax.algorithms.task import Task
from ape_jax.core import tabular
from ape_jax.core.distributions import Categorical
from ape_jax.demonstrations import collect
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.evaluation import returns
from ape_jax.evaluation.attackers import ATTACKERS
from ape_jax.evaluation.deployment import LEAST_PROB, Outcome
from ape_jax.evaluation.effort import Effort, Setting
from ape_jax.observers.posterior import exact_posterior
from ape_jax.observers.recurrent import episodes_of
from ape_jax.types import Params

SEEDS_AT_ONCE = 10
"""Seeds that are measured side by side; memory does not grow with more."""

POSTERIOR_STEPS = 30
"""Steps of an episode along which the posterior entropy of the expert is followed."""


class Measures(NamedTuple):
    """Numbers of an ensemble itself."""

    experts: Float[Array, "... E"]
    """Returns of the experts, which sample their actions."""
    greedy_experts: Float[Array, "... E"]
    """Returns of the experts, each deployed greedily itself."""
    floor: Float[Array, "..."] | None
    """Least return of the ideal sampling cloner; None without a finite MDP."""
    mixture_entropy: Float[Array, "..."] | None
    """Entropy of the posterior mixture where the experts go, in nats a step. No clone that is a
    function of the state has a higher log-likelihood than its negative. None without a finite
    MDP."""
    posterior_entropy: Float[Array, "... T"]
    """Entropy of the expert given an episode's actions before a step, in nats; mean over the
    episodes that reach that step."""


def over_seeds(function: Callable, *arguments: Any, side_by_side: bool = True) -> Any:
    """Map a function over the leading axis K of its arguments, a few seeds at a time."""
    batch_size = SEEDS_AT_ONCE if side_by_side else None
    return jax.lax.map(lambda one: function(*one), arguments, batch_size=batch_size)


@functools.partial(jax.jit, static_argnums=(0, 3))
def demonstrate(
    task: Task, keys: Key[Array, " K"], heads: Params, num_steps: int
) -> Demonstrations:
    """Demonstrations [K, N, …] of every seed's ensemble."""

    def one(key, heads):
        return collect.collect(key, task, heads, num_steps)[0]

    return over_seeds(one, keys, heads)


@functools.partial(jax.jit, static_argnums=0)
def measure(
    task: Task, keys: Key[Array, " K"], heads: Params, held_out: Demonstrations
) -> Measures:
    """Measures [K, …] of ensembles [K, E, …].

    The posterior entropy is that of held-out demonstrations [K, N, …] of the same ensembles.
    """

    def one(key, heads, held_out):
        own = returns.ensemble_returns(task, heads, key)
        floor = mixture_entropy = None
        if task.world.mdp is not None:
            policies = jnp.exp(task.networks.tabulate_experts(heads))
            floor = tabular.cloning_floor(task.world.mdp, policies)
            mixture_entropy = _mixture_entropy(task, heads, policies)
        entropy = _posterior_entropy(task, heads, held_out)
        return Measures(own.experts, own.greedy_experts, floor, mixture_entropy, entropy)

    return over_seeds(one, keys, heads, held_out)


def _mixture_entropy(
    task: Task, heads: Params, policies: Float[Array, "E S A"]
) -> Float[Array, ""]:
    mdp = task.world.mdp
    assert mdp is not None
    occupancies = jax.vmap(tabular.state_occupancy, (None, 0))(mdp, policies)
    mixture = exact_posterior(mdp, task.networks, heads)
    entropies = jax.vmap(Categorical.entropy)(mixture.table)
    return jnp.average(entropies, weights=jnp.sum(occupancies, axis=0))


def _posterior_entropy(task: Task, heads: Params, held_out: Demonstrations) -> Float[Array, " T"]:
    networks = task.networks
    rows, _, mask, begins = episodes_of(held_out, 1024, POSTERIOR_STEPS)
    mask = mask & begins[:, None]
    acts = networks.tabulate(lambda o: networks.distributions(heads, o))

    def log_probs(observation, action):
        return jax.vmap(lambda expert: expert.log_prob(action))(acts(observation))

    taken = jax.vmap(jax.vmap(log_probs))(rows.observation, rows.action)
    evidence = jnp.cumsum(jnp.maximum(taken, jnp.log(LEAST_PROB)), axis=1)
    before = jnp.pad(evidence[:, :-1], ((0, 0), (1, 0), (0, 0)))
    entropies = jax.vmap(jax.vmap(Categorical.entropy))(Categorical(jax.nn.log_softmax(before)))
    num_episodes = jnp.maximum(jnp.sum(mask, axis=0), 1)
    return jnp.sum(jnp.where(mask, entropies, 0.0), axis=0) / num_episodes


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def attack(
    task: Task,
    effort: Effort,
    name: str,
    keys: Key[Array, " K"],
    heads: Params | None,
    shown: Demonstrations,
    held_out: Demonstrations,
) -> dict[str, Outcome]:
    """Run one observer against every seed's ensemble, and score its clone.

    Args:
      task: environment, time limit and networks.
      effort: how much the observer may see and compute.
      name: the observer, as in ``ATTACKERS``. What follows a comma tells which of its clones
        attacks; without one all do.
      keys: one for each seed.
      heads: parameters of the experts [K, E, …]; None where there are demonstrations only.
      shown: demonstrations that the observer is fitted to [K, N, …].
      held_out: demonstrations that the clone is scored on [K, M, …].

    Returns:
      Outcomes [K] by deployment; where an attacker fits several clones, what tells them apart is
      part of the name.
    """
    observer_name, comma, only = name.partition(", ")
    attacker = ATTACKERS[observer_name]

    def one(key, heads, shown, held_out):
        key_fit, key_deploy = jax.random.split(key)
        outcomes: dict[str, Outcome] = {}
        for label, observer in attacker.make(Setting(task, effort, heads)).items():
            if comma and label != only:
                continue
            clone = observer.fit(key_fit, shown)
            found = attacker.deploy(task.world, clone, held_out, key_deploy, effort.num_episodes)
            outcomes |= {f"{way}, {label}" if label else way: x for way, x in found.items()}
        return outcomes

    # On a CPU, batches of small matrices are no faster, and now and then those of recurrent
    # networks hang in the thread pool of XLA (seen with jaxlib 0.10.2).
    by_tables = task.networks.num_states is not None and not attacker.by_networks
    side_by_side = by_tables or jax.default_backend() != "cpu"
    return over_seeds(one, keys, heads, shown, held_out, side_by_side=side_by_side)
