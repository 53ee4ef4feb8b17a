"""Every observer against an ensemble: what each gets, in each way of deploying its clone."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ape_jax.algorithms.task import Task
from ape_jax.core import tabular
from ape_jax.core.distributions import Categorical
from ape_jax.demonstrations import collect
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.evaluation import returns
from ape_jax.evaluation.attackers import ATTACKERS, Effort, Setting, limited
from ape_jax.evaluation.deployment import DEPLOYMENTS, LEAST_PROB, Outcome
from ape_jax.observers.posterior import exact_posterior
from ape_jax.observers.recurrent import episodes_of
from ape_jax.types import Params, PRNGKey

HELD_OUT_STEPS = 10_000
"""Fresh steps for log-likelihoods and agreement."""

SEEDS_AT_ONCE = 10
"""Seeds attacked side by side. Demonstrations of all seeds are in memory at once."""


class Measures(NamedTuple):
    """Of an ensemble itself."""

    experts: Float[Array, "... E"]
    """Returns."""
    greedy_experts: Float[Array, "... E"]
    """Returns of the experts, each deployed greedily itself."""
    floor: Float[Array, "..."] | None
    """What the ideal sampling cloner returns at least; None without a finite MDP."""
    mixture_entropy: Float[Array, "..."] | None
    """Of the posterior mixture where the experts go, in nats a step: no clone that is a function of
    the state has a higher log-likelihood than its negative. None without a finite MDP."""
    posterior_entropy: Float[Array, "... T"]
    """Of the expert, given an episode's actions up to a step, in nats; mean over the episodes that
    reach that step."""


POSTERIOR_STEPS = 30
"""Steps along which the posterior entropy of the expert is followed."""


def measure(task: Task, heads: Params, held_out: Demonstrations, key: PRNGKey) -> Measures:
    """Measure an ensemble."""
    networks = task.networks
    own = returns.ensemble_returns(task, heads, key)
    floor = mixture_entropy = None
    if task.world.mdp is not None:
        policies = jnp.exp(networks.tabulate_experts(heads))
        floor = tabular.cloning_floor(task.world.mdp, policies)
        occupancies = jax.vmap(tabular.state_occupancy, (None, 0))(task.world.mdp, policies)
        mixture = exact_posterior(task.world.mdp, networks, heads)
        entropies = jax.vmap(Categorical.entropy)(mixture.table)
        mixture_entropy = jnp.average(entropies, weights=jnp.sum(occupancies, axis=0))

    rows, _, live, begins = episodes_of(held_out, 1024, POSTERIOR_STEPS)
    live = live & begins[:, None]
    expert_log_probs = networks.tabulate(lambda o: networks.expert_log_probs(heads, o))
    log_probs = jax.vmap(jax.vmap(expert_log_probs))(rows.observation)
    taken = jnp.take_along_axis(log_probs, rows.action[..., None, None], axis=-1)[..., 0]
    evidence = jnp.cumsum(jnp.maximum(taken, jnp.log(LEAST_PROB)), axis=1)
    before = jnp.pad(evidence[:, :-1], ((0, 0), (1, 0), (0, 0)))
    entropies = jax.vmap(jax.vmap(Categorical.entropy))(Categorical(jax.nn.log_softmax(before)))
    num_live = jnp.maximum(jnp.sum(live, axis=0), 1)
    posterior_entropy = jnp.sum(jnp.where(live, entropies, 0.0), axis=0) / num_live
    return Measures(own.experts, own.greedy_experts, floor, mixture_entropy, posterior_entropy)


class Auditor:
    """Attacks ensembles of one task, seed by seed; compiled programs are kept between calls."""

    def __init__(self, task: Task, effort: Effort):
        self.task = task
        self.effort = effort
        self._collect = jax.jit(self._collect_seeds, static_argnums=2)
        self._attack = jax.jit(self._attack_seeds, static_argnums=0)
        self._limited = jax.jit(self._limited_seeds, static_argnums=(0, 1))
        self._measure = jax.jit(self._measure_seeds)

    def demonstrate(self, keys: Key[Array, " K"], heads: Params, num_steps: int) -> Demonstrations:
        """Demonstrations [K, N, …] of every seed's ensemble."""
        return self._collect(keys, heads, num_steps)

    def attack(
        self,
        name: str,
        keys: Key[Array, " K"],
        heads: Params | None,
        shown: Demonstrations,
        held_out: Demonstrations,
    ) -> dict[str, Outcome]:
        """One observer against every seed: deployment to outcomes [K]."""
        outcomes = self._attack(name, keys, heads, shown, held_out)
        return {name: outcomes[name] for name in DEPLOYMENTS if name in outcomes}

    def limited(
        self, num_steps: int, width: int, keys: Key[Array, " K"], shown: Demonstrations
    ) -> dict[str, Float[Array, " K"]]:
        """Clone returns of a network of a width that sees so many steps, by deployment."""
        return self._limited(num_steps, width, keys, shown)

    def measure(self, keys: Key[Array, " K"], heads: Params, held_out: Demonstrations) -> Measures:
        """Measures [K, …] of the ensembles themselves."""
        return self._measure(keys, heads, held_out)

    def _over_seeds(self, function, *arguments, side_by_side: bool = True):
        batch_size = SEEDS_AT_ONCE if side_by_side else None
        return jax.lax.map(lambda one: function(*one), arguments, batch_size=batch_size)

    def _collect_seeds(self, keys, heads, num_steps):
        def one(key, heads):
            return collect.collect(key, self.task, heads, num_steps)[0]

        return self._over_seeds(one, keys, heads)

    def _attack_seeds(self, name, keys, heads, shown, held_out):
        def one(key, heads, shown, held_out):
            key_fit, key_deploy = jax.random.split(key)
            attacker = ATTACKERS[name]
            observer = attacker.make(Setting(self.task, self.effort, heads))
            clone = observer.fit(key_fit, shown)
            return attacker.deploy(self.task.world, clone, held_out, key_deploy)

        # On a CPU, batches of the small matrices of recurrent networks are no faster, and now and
        # then they hang in the thread pool of XLA (seen with jaxlib 0.10.2).
        side_by_side = name != "recurrent" or jax.default_backend() != "cpu"
        return self._over_seeds(one, keys, heads, shown, held_out, side_by_side=side_by_side)

    def _limited_seeds(self, num_steps, width, keys, shown):
        def one(key, shown):
            key_fit, key_deploy = jax.random.split(key)
            observer = limited(Setting(self.task, self.effort, None), num_steps, width)
            clone = observer.fit(key_fit, shown)
            return {
                "sampled": returns.expected_return(self.task.world, clone, key_deploy),
                "greedy": returns.expected_return(
                    self.task.world, returns.greedy(clone), key_deploy
                ),
            }

        return self._over_seeds(one, keys, shown)

    def _measure_seeds(self, keys, heads, held_out):
        def one(key, heads, held_out):
            return measure(self.task, heads, held_out, key)

        return self._over_seeds(one, keys, heads, held_out)
