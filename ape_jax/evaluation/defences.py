"""Ensembles that an audit compares with: built where the optimum is known, else trained.

All ensembles of one audit have the same shape, so that one compiled program attacks them all. Where
observations are finite, each is a table of log-probabilities. An ensemble of fewer experts holds
each expert several times, which changes nothing for any observer.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ape_jax import envs
from ape_jax.algorithms import traps
from ape_jax.algorithms.task import Task, make_task
from ape_jax.config import Hypers, TrainConfig, recipe
from ape_jax.core import tabular
from ape_jax.core.mixture import LOG_FLOOR
from ape_jax.core.tabular import FiniteMDP
from ape_jax.envs.world import World
from ape_jax.evaluation import returns
from ape_jax.evaluation.measure import over_seeds
from ape_jax.evaluation.progress import Progress, ProgressFn, ignore_progress, train
from ape_jax.networks import Networks
from ape_jax.settings.names import PGObserverName
from ape_jax.types import Params, PRNGKey, SettingError

GREEDY_BETA, GREEDY_TEMPERATURE = 0.3, 0.1
"""Hyperparameters of greedy-APE: the observer trained against is nearly greedy."""

GREEDY_UPDATES = 2000

CONTROL_BETAS, CONTROL_TEMPERATURES = (0.1, 0.2, 0.3, 0.45, 0.6), (0.1, 0.3)
"""Hyperparameters of the control with one expert, of which those are taken that cost as much as
the ensemble."""

ENT_COEF = 1.0
"""Return for each nat of entropy. On the gridworld it costs about as much as PG-APE."""

SUBOPTIMAL_BOUND = 2.0
"""The most return that one random action may cost: on the gridworld a step away and back."""


class Ensemble(NamedTuple):
    """Experts of several seeds, ready to demonstrate."""

    name: str
    """The defence's name, or ``run`` for an ensemble that was given."""
    num_experts: int
    """Different experts in it, which may be fewer than E."""
    heads: Params
    """Parameters [K, E, …]; None where there are demonstrations only."""
    facts: dict[str, Any] = {}  # noqa: RUF012  Never changed.
    """Further facts about each seed, as fields of ``Defence``."""


class Setting(NamedTuple):
    """The environment, settings and seeds that defences are made for."""

    task: Task
    config: TrainConfig
    hypers: Hypers
    """Their learning rates and the like. What each is trained for is the defence's own."""
    keys: Key[Array, " K"]
    progress: ProgressFn
    made: dict[str, Ensemble]


class Kind(NamedTuple):
    """One way to make an ensemble."""

    label: str
    make: Callable[[Setting, str], Ensemble]
    needs_mdp: bool = False
    least_experts: int = 1


def prepare(
    config: TrainConfig,
    hypers: Hypers,
    keys: Key[Array, " K"],
    progress: ProgressFn = ignore_progress,
    world: World | None = None,
) -> Setting:
    """A ``Setting`` in which no defence has been made yet.

    The world is the environment itself, where it is not the one that ``config`` names.
    """
    config = dataclasses.replace(config, observer="uniform")
    world = make_task(config).world if world is None else world
    task = _task(config, world)
    if task.networks.num_states is not None:
        task = _task(dataclasses.replace(config, head="tabular"), world)
    return Setting(task, config, hypers, keys, progress, {})


def available(setting: Setting) -> list[str]:
    """Names of the defences that can be made in this environment."""
    return [
        name
        for name, kind in DEFENCES.items()
        if setting.config.num_experts >= kind.least_experts
        and not (kind.needs_mdp and setting.task.world.mdp is None)
    ]


def check(setting: Setting, names: Iterable[str]) -> None:
    """Refuse defences that cannot be made.

    Raises:
      SettingError: no such defence, or one that needs a finite MDP where there is none.
    """
    for name in names:
        if name not in DEFENCES:
            raise SettingError(f"defences must be among {', '.join(DEFENCES)}; got {name!r}")
        if name not in available(setting):
            raise SettingError(
                f"defence {name!r} needs an environment with a finite MDP, such as "
                f"{envs.GRIDWORLD}, and a trap two experts or more; got "
                f"env={setting.config.env!r} and num_experts={setting.config.num_experts}"
            )


def make(setting: Setting, name: str) -> Ensemble:
    """Build or train one of the available defences; each is made once."""
    if name not in setting.made:
        setting.made[name] = DEFENCES[name].make(setting, name)
    return setting.made[name]


def adopt(setting: Setting, name: str, networks: Networks, heads: Params) -> Ensemble:
    """The ensemble of heads [K, E', …] that were trained in the same environment."""
    if setting.task.networks.num_states is not None:
        heads = as_tables(jax.vmap(networks.tabulate_experts)(heads))
    # Copied to the host, however they were trained: one compile for all ensembles.
    return _ensemble(setting, name, jax.device_get(heads))


def label_of(name: str) -> str:
    """The readable name of an ensemble."""
    return DEFENCES[name].label if name in DEFENCES else name


def _ensemble(setting: Setting, name: str, heads: Params) -> Ensemble:
    """Repeat experts [K, E', …] until there are as many as everywhere."""
    num_experts = jax.tree.leaves(heads)[0].shape[1]
    times, rest = divmod(setting.config.num_experts, num_experts)
    assert rest == 0, (setting.config.num_experts, num_experts)
    return Ensemble(name, num_experts, jax.tree.map(lambda x: jnp.repeat(x, times, axis=1), heads))


@lru_cache(maxsize=16)
def _task(config: TrainConfig, world: World) -> Task:
    """The same task for the same settings, so that a program is compiled once."""
    return make_task(config, world.env, world.params)


def _train(
    setting: Setting,
    name: str,
    num_experts: int | None = None,
    beta: float = 0.0,
    ent_coef: float = 0.0,
    greedy: bool = False,
) -> Ensemble:
    """Experts that are trained by the same code as a run."""
    world, config, temperature = setting.task.world, setting.config, 1.0
    if num_experts is not None:
        config = dataclasses.replace(config, num_experts=num_experts)
    if greedy:
        beta, temperature = GREEDY_BETA, GREEDY_TEMPERATURE
        config = greedy_config(config, world.mdp)
    hypers = dataclasses.replace(
        setting.hypers, beta=beta, temperature=temperature, ent_coef=ent_coef, min_return=None
    )
    task = _task(config, world)
    state, _ = train(label_of(name), task, setting.keys, hypers, setting.progress)
    return adopt(setting, name, task.networks, state.params.heads)


def _control(setting: Setting, name: str) -> Ensemble:
    """One expert trained like greedy-APE, at the price of greedy-APE.

    Every pair of β and temperature is trained for every seed, side by side. The pair whose mean
    return is closest to that of greedy-APE is taken for all seeds.
    """
    world, num_seeds = setting.task.world, len(setting.keys)
    config = greedy_config(dataclasses.replace(setting.config, num_experts=1), world.mdp)
    pairs = jnp.array(list(itertools.product(CONTROL_BETAS, CONTROL_TEMPERATURES)))
    hypers = dataclasses.replace(setting.hypers, ent_coef=0.0, min_return=None)
    hypers = jax.tree.map(lambda x: jnp.full(len(pairs) * num_seeds, x), hypers)
    betas, temperatures = jnp.repeat(pairs, num_seeds, axis=0).T
    hypers = dataclasses.replace(hypers, beta=betas, temperature=temperatures)
    task, keys = _task(config, world), jnp.tile(setting.keys, len(pairs))
    state, _ = train(label_of(name), task, keys, hypers, setting.progress, sweep=True)
    control = adopt(setting, name, task.networks, state.params.heads)
    target = jnp.mean(pe_returns(setting.task, make(setting, "greedy_ape").heads, setting.keys))
    reached = pe_returns(setting.task, control.heads, keys).reshape(len(pairs), num_seeds)
    chosen = int(jnp.argmin(jnp.abs(jnp.mean(reached, axis=1) - target)))
    own = slice(chosen * num_seeds, (chosen + 1) * num_seeds)
    beta, temperature = map(float, pairs[chosen])
    return control._replace(
        heads=jax.tree.map(lambda x: x[own], control.heads),
        facts={"settings": f"beta {beta:g}, temperature {temperature:g}"},
    )


@partial(jax.jit, static_argnums=0)
def pe_returns(task: Task, heads: Params, keys: Key[Array, " K"]) -> Float[Array, " K"]:
    """J(PE) of ensembles [K, E, …], with other episodes than training had."""

    def one(heads, key):
        return returns.ensemble_returns(task, heads, jax.random.fold_in(key, 1)).pe

    return over_seeds(one, heads, keys)


def _build(setting: Setting, name: str, policies: Float[Array, "K E S A"]) -> Ensemble:
    """Experts whose policies are known."""
    return _ensemble(setting, name, as_tables(jnp.maximum(jnp.log(policies), LOG_FLOOR)))


def _single_optimal(setting: Setting, name: str) -> Ensemble:
    mdp = setting.task.world.mdp
    if mdp is None:
        return _train(setting, name, num_experts=1)
    policies = jnp.tile(tabular.optimal_policy(mdp), (len(setting.keys), 1, 1, 1))
    return _build(setting, name, policies)


def _independent_optimal(setting: Setting, name: str) -> Ensemble:
    mdp, num_experts = setting.task.world.mdp, setting.config.num_experts
    if mdp is None:
        return _train(setting, name)
    each = jax.vmap(independent_optimal, (0, None, None))
    return _build(setting, name, each(setting.keys, mdp, num_experts))


def _pg_ape(setting: Setting, name: str) -> Ensemble:
    return _train(setting, name, beta=recipe(setting.config.head)[1].beta)


def _bounded_random(setting: Setting, name: str) -> Ensemble:
    mdp = setting.task.world.mdp
    assert mdp is not None
    policies = make(setting, "pg_ape").heads["params"]["table"]
    returns = jax.vmap(jax.vmap(tabular.policy_return, (None, 0)), (None, 0))
    price = jnp.mean(returns(mdp, jnp.exp(policies)), axis=-1)
    return _build(setting, name, jax.vmap(bounded_random, (None, 0))(mdp, price)[:, None])


def _trap(setting: Setting, name: str) -> Ensemble:
    mdp, num_experts = setting.task.world.mdp, setting.config.num_experts
    search = jax.jit(traps.train, static_argnums=(2, 3))
    logits, reports = [], []
    for index, key in enumerate(setting.keys):
        found, report = search(key, mdp, num_experts, traps.TrapConfig())
        logits.append(found)
        reports.append(report)
        setting.progress(Progress(label_of(name), index + 1, len(setting.keys)))
    ensemble = _build(setting, name, jax.nn.softmax(jnp.stack(logits)))
    facts = {
        fact: tuple(bool(getattr(report, fact)) for report in reports)
        for fact in ("trapped", "from_every_start")
    }
    return ensemble._replace(facts=facts)


DEFENCES = {
    "single_optimal": Kind("single optimal policy", _single_optimal),
    "independent_optimal": Kind("independent optimal ensemble", _independent_optimal),
    "entropy": Kind("entropy-regularised ensemble", partial(_train, ent_coef=ENT_COEF)),
    "pg_ape": Kind("PG-APE", _pg_ape),
    "bounded_random": Kind("bounded random actions", _bounded_random, needs_mdp=True),
    "greedy_ape": Kind("greedy-APE", partial(_train, greedy=True)),
    "greedy_ape_single": Kind("greedy-APE, 1 expert", _control),
    "trap": Kind("trap ensemble", _trap, needs_mdp=True, least_experts=2),
}


def greedy_weights(mdp: FiniteMDP | None) -> PGObserverName:
    """Weights that greedy-APE trains against: exact with a finite MDP, else learned."""
    return "learned" if mdp is None else "posterior"


def greedy_config(config: TrainConfig, mdp: FiniteMDP | None) -> TrainConfig:
    """The training of greedy-APE."""
    num_updates = min(config.num_updates, GREEDY_UPDATES)
    return dataclasses.replace(config, num_updates=num_updates, observer=greedy_weights(mdp))


def as_tables(log_probs: Float[Array, "*K E S A"]) -> Params:
    """Log-probabilities as parameters of tabular heads."""
    return {"params": {"table": log_probs}}


def independent_optimal(key: PRNGKey, mdp: FiniteMDP, num_experts: int) -> Float[Array, "E S A"]:
    """Deterministic optimal policies; each breaks ties in its own way."""
    optimal = tabular.optimal_policy(mdp)
    preference = jax.random.uniform(key, (num_experts, *optimal.shape))
    best = jnp.argmax(jnp.where(optimal[None] > 0, preference, -1.0), axis=-1)
    return jax.nn.one_hot(best, mdp.num_actions)


def bounded_random(
    mdp: FiniteMDP, target: Float[Array, ""], bound: float = SUBOPTIMAL_BOUND
) -> Float[Array, "S A"]:
    """An optimal policy that sometimes acts at random, at a given cost in return.

    With probability p it takes an action drawn from those that are not optimal and cost at most
    ``bound``, Q*(s, a) ≥ V*(s) − bound; p is the one that brings the return down to ``target``.
    The idea is that of constrained randomisation of policies (CRoP, arXiv 2109.14678).

    A target above the optimal return gives p = 0.
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
