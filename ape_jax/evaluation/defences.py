"""Ensembles to compare with: built where the optimum is known, else trained by the same code."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ape_jax import envs
from ape_jax.algorithms import traps
from ape_jax.algorithms.task import make_task
from ape_jax.config import Hypers, TrainConfig, recipe
from ape_jax.core import tabular
from ape_jax.core.mixture import LOG_FLOOR
from ape_jax.core.tabular import FiniteMDP
from ape_jax.networks import Networks
from ape_jax.training.trainer import Trainer
from ape_jax.types import Params, PGObserverName, PRNGKey, SettingError

LABELS = {
    "single_optimal": "single optimal policy",
    "independent_optimal": "independent optimal ensemble",
    "entropy": "entropy-regularised ensemble",
    "pg_ape": "PG-APE",
    "bounded_random": "bounded random actions",
    "greedy_ape": "greedy-APE",
    "greedy_ape_single": "greedy-APE, 1 expert",
    "trap": "trap ensemble",
}
"""Defences, and what people call them."""

GREEDY_BETA, GREEDY_TEMPERATURE = 0.3, 0.1
"""Hyperparameters of greedy-APE: against an observer who is nearly greedy."""

GREEDY_UPDATES = 2000
"""Updates of greedy-APE."""

ENTROPY_BONUS = 1.0
"""Return per nat; on the gridworld about PG-APE's price."""

SUBOPTIMAL_BOUND = 2.0
"""Return that one random action may cost: on the gridworld, a step away and the step back."""


class Ensemble(NamedTuple):
    """Experts of several seeds, ready to demonstrate."""

    name: str
    """The defence's, as in ``LABELS``; ``run`` for an ensemble that was given."""
    num_experts: int
    """Experts in it (E)."""
    heads: Params
    """[K, E, …]; where there are fewer experts than E, each is there several times."""
    facts: dict[str, list[bool]] = {}  # noqa: RUF012  Never changed.
    """What else is known of each seed."""


Report = Callable[[str, int, int], None]
"""Told the defence that trains, how far it is, and how far it goes."""


class Defences:
    """Makes ensembles of one shape, so that one compiled program attacks them all.

    Where observations are finite, every ensemble is a table of log-probabilities; an ensemble of
    fewer experts holds each several times, which changes nothing for any observer.
    """

    def __init__(
        self,
        config: TrainConfig,
        hypers: Hypers,
        keys: Key[Array, " K"],
        report: Report = lambda name, done, total: None,
    ):
        """Check the environment.

        Args:
          config: of the experts to compare with: environment, number of experts, heads, updates.
          hypers: rates and the like; what is trained for (β, temperature, bonus on entropy, least
            return) is each defence's own.
          keys: one a seed.
          report: called after every chunk of training.
        """
        self.config = dataclasses.replace(config, observer="uniform")
        self.hypers = hypers
        self.keys = keys
        self._report = report
        self._trained_on = make_task(self.config)
        finite = self._trained_on.networks.num_states is not None
        self.task = (
            make_task(dataclasses.replace(self.config, head="tabular"))
            if finite
            else self._trained_on
        )
        """Where they all demonstrate."""
        self._runners: dict[TrainConfig, Trainer] = {}
        self._ready: dict[str, Ensemble] = {}

    @property
    def available(self) -> list[str]:
        """Defences that can be had in this environment."""
        lacking = set() if self.task.world.mdp is not None else {"bounded_random", "trap"}
        if self.config.num_experts < 2:
            lacking.add("trap")
        return [name for name in LABELS if name not in lacking]

    def check(self, names: Iterable[str]) -> None:
        """Raise where one of them cannot be made.

        Raises:
          SettingError: no such defence, or one that needs a finite MDP where there is none.
        """
        for name in names:
            if name not in LABELS:
                raise SettingError(f"defences must be among {', '.join(LABELS)}; got {name!r}")
            if name not in self.available:
                raise SettingError(
                    f"defence {name!r} needs an environment with a finite MDP, such as "
                    f"{envs.GRIDWORLD}, and a trap two experts or more; got "
                    f"env={self.config.env!r} and num_experts={self.config.num_experts}"
                )

    def make(self, name: str) -> Ensemble:
        """Build or train one of those that ``check`` passes; made once."""
        if name not in self._ready:
            self._ready[name] = getattr(self, f"_{name}")()
        return self._ready[name]

    def adopt(self, name: str, networks: Networks, heads: Params) -> Ensemble:
        """An ensemble trained elsewhere in the same environment, heads [K, E', …]."""
        if self.task.networks.num_states is not None:
            heads = as_tables(jax.vmap(networks.tabulate_experts)(heads))
        heads = jax.device_get(heads)  # However they were trained: one compile for all ensembles.
        times, rest = divmod(self.config.num_experts, networks.num_experts)
        assert rest == 0, (self.config.num_experts, networks.num_experts)
        heads = jax.tree.map(lambda x: jnp.repeat(x, times, axis=1), heads)
        return Ensemble(name, networks.num_experts, heads)

    def _single_optimal(self) -> Ensemble:
        if self.task.world.mdp is None:
            return self._train("single_optimal", num_experts=1)
        policy = tabular.optimal_policy(self.task.world.mdp)[None]
        return self._built("single_optimal", jnp.tile(policy, (len(self.keys), 1, 1, 1)))

    def _independent_optimal(self) -> Ensemble:
        if self.task.world.mdp is None:
            return self._train("independent_optimal")
        policies = jax.vmap(independent_optimal, (0, None, None))(
            self.keys, self.task.world.mdp, self.config.num_experts
        )
        return self._built("independent_optimal", policies)

    def _entropy(self) -> Ensemble:
        return self._train("entropy", ent_coef=ENTROPY_BONUS)

    def _pg_ape(self) -> Ensemble:
        return self._train("pg_ape", beta=recipe(self.config.head)[1].beta)

    def _bounded_random(self) -> Ensemble:
        mdp = self.task.world.mdp
        assert mdp is not None
        policies = self.make("pg_ape").heads["params"]["table"]
        returns = jax.vmap(jax.vmap(tabular.policy_return, (None, 0)), (None, 0))
        price = jnp.mean(returns(mdp, jnp.exp(policies)), axis=-1)
        return self._built(
            "bounded_random", jax.vmap(bounded_random, (None, 0))(mdp, price)[:, None]
        )

    def _greedy_ape(self) -> Ensemble:
        return self._train("greedy_ape", greedy=True)

    def _greedy_ape_single(self) -> Ensemble:
        return self._train("greedy_ape_single", num_experts=1, greedy=True)

    def _trap(self) -> Ensemble:
        mdp = self.task.world.mdp
        assert mdp is not None
        train = jax.jit(traps.train, static_argnums=(2, 3))
        trained = []
        for index, key in enumerate(self.keys):
            trained.append(train(key, mdp, self.config.num_experts, traps.TrapConfig()))
            self._report("trap", index + 1, len(self.keys))
        ensemble = self._built("trap", jax.nn.softmax(jnp.stack([one for one, _ in trained])))
        facts = {
            "trapped": [bool(report.trapped) for _, report in trained],
            "from_every_start": [bool(report.from_every_start) for _, report in trained],
        }
        return ensemble._replace(facts=facts)

    def _train(
        self,
        name: str,
        num_experts: int | None = None,
        beta: float = 0.0,
        ent_coef: float = 0.0,
        greedy: bool = False,
    ) -> Ensemble:
        config = self.config
        if num_experts is not None:
            config = dataclasses.replace(config, num_experts=num_experts)
        if greedy:
            config = dataclasses.replace(
                config,
                num_updates=min(config.num_updates, GREEDY_UPDATES),
                observer=greedy_weights(self.task.world.mdp),
            )
        if config not in self._runners:
            self._runners[config] = Trainer(make_task(config))
        runner = self._runners[config]
        hypers = dataclasses.replace(
            self.hypers,
            beta=GREEDY_BETA if greedy else beta,
            temperature=GREEDY_TEMPERATURE if greedy else 1.0,
            ent_coef=ent_coef,
            min_return=None,
        )
        for chunk in runner.chunks(self.keys, hypers):
            self._report(name, chunk.num_done, chunk.num_updates)
        return self.adopt(name, runner.task.networks, chunk.state.params.heads)

    def _built(self, name: str, policies: Float[Array, "K E S A"]) -> Ensemble:
        times = self.config.num_experts // policies.shape[1]
        heads = as_tables(jnp.maximum(jnp.log(policies), LOG_FLOOR))
        heads = jax.tree.map(lambda x: jnp.repeat(x, times, axis=1), heads)
        return Ensemble(name, policies.shape[1], heads)


def greedy_weights(mdp: FiniteMDP | None) -> PGObserverName:
    """Weights that greedy-APE trains against: exact where they can be had, else learned."""
    return "learned" if mdp is None else "posterior"


def as_tables(log_probs: Float[Array, "*K E S A"]) -> Params:
    """Log-probabilities as parameters of tabular heads."""
    return {"params": {"table": log_probs}}


def independent_optimal(key: PRNGKey, mdp: FiniteMDP, num_experts: int) -> Float[Array, "E S A"]:
    """Deterministic optimal policies that break ties each in its own way."""
    optimal = tabular.optimal_policy(mdp)
    preference = jax.random.uniform(key, (num_experts, *optimal.shape))
    best = jnp.argmax(jnp.where(optimal[None] > 0, preference, -1.0), axis=-1)
    return jax.nn.one_hot(best, mdp.num_actions)


def bounded_random(
    mdp: FiniteMDP, target: Float[Array, ""], bound: float = SUBOPTIMAL_BOUND
) -> Float[Array, "S A"]:
    """An optimal policy that now and then acts at random, at a given cost in return.

    With probability p it takes an action drawn from those that are not optimal and cost at most
    ``bound``, Q*(s, a) ≥ V*(s) − bound; p is the one that brings the return down to ``target``.
    The idea is that of constrained randomisation of policies (CRoP, arXiv 2109.14678).

    Args:
      mdp: the process.
      target: the return to come down to; the optimal one, if it is higher.
      bound: the most that one such action may cost, in return.

    Returns:
      Probabilities.
    """
    action_values = tabular.optimal_action_values(mdp)
    values = jnp.max(action_values, axis=-1, keepdims=True)
    optimal = tabular.optimal_policy(mdp)
    allowed = (action_values >= values - bound - 1e-5) & (optimal == 0)
    totals = jnp.sum(allowed, axis=-1, keepdims=True)
    random = jnp.where(totals > 0, allowed / jnp.maximum(totals, 1), optimal)

    def policy(share):
        return (1.0 - share) * optimal + share * random

    def halve(_, interval):
        low, high = interval
        middle = 0.5 * (low + high)
        too_much = tabular.policy_return(mdp, policy(middle)) < target
        return jnp.where(too_much, low, middle), jnp.where(too_much, middle, high)

    low, _ = jax.lax.fori_loop(0, 30, halve, (jnp.float32(0.0), jnp.float32(1.0)))
    return policy(low)
