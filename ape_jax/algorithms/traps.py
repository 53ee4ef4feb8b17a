"""Trap ensembles: every expert does well even when deployed greedily, and their greedy clone fails.

One expert alone can trap its own greedy clone, if it is good on average and its most probable
action is wrong. A trap ensemble has to do without this: its experts must do well greedily, too.
On the 10 × 10 grid the greedy clone then walks back and forth between two cells close to the goal,
in each of which another expert has the majority of the pooled demonstrations.

Because returns are means over starts, an expert may be stuck in a cell or two at little cost.
Restarts whose greedy experts arrive from *every* start are therefore preferred.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ape_jax.algorithms import exact
from ape_jax.core import mixture, tabular
from ape_jax.core.tabular import FiniteMDP
from ape_jax.types import PRNGKey, SettingError


@dataclasses.dataclass(frozen=True)
class TrapConfig:
    """Settings of the training of trap ensembles; the defaults fit the 10 × 10 grid."""

    num_restarts: int = 16
    """Runs from different first logits (R); the best one by exact evaluation is kept."""
    num_updates: int = 400
    learning_rate: float = 0.1
    """Learning rate at the start. With half of it, an expert is lost more often."""
    lr_end_fraction: float = 0.1
    weight_decay: float = 0.2
    """It keeps policies away from the corners of the simplex, where gradients are zero."""
    beta: float = 1.6
    """Weight of the clone's return at the start, against the *sum* of the experts' utilities."""
    beta_end_fraction: float = 0.35
    """Fraction of beta left at the end: first the trap is made, then experts are repaired."""
    expert_temperatures: tuple[float, ...] = (1.0, 0.3, 0.1)
    """Temperatures at which each expert is deployed in training. The middle one has a gradient
    where the coldest has none."""
    clone_temperature: float = 0.1
    """Temperature of the clone trained against. Above zero, the clone's favoured action leads by a
    factor, which the noise of counting demonstrations does not reverse."""
    utility_scale: float = 20.0
    """Size of a return at which a loss counts twice (u)."""
    train_horizon: int = 40
    """Steps of an episode in training, at most the process's own; enough to recognise a trap."""
    min_return: float = -14.0
    """Smallest return of every expert that samples its actions."""
    min_greedy_return: float = -13.0
    max_clone_return: float = -70.0
    """Largest return of the greedy clone."""
    min_start_return: float = -40.0
    """Smallest return of every greedy expert from its worst start; preferred, not required."""

    def __post_init__(self):
        for name in ("num_restarts", "num_updates", "train_horizon"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} must be at least 1; got {getattr(self, name)}")
        temperatures = (*self.expert_temperatures, self.clone_temperature)
        if not self.expert_temperatures or min(temperatures) <= 0:
            raise SettingError(
                f"temperatures must be > 0, and the experts need at least one; got {temperatures}"
            )
        for name in ("learning_rate", "utility_scale"):
            if getattr(self, name) <= 0:
                raise SettingError(f"{name} must be > 0; got {getattr(self, name)}")


class TrapReturns(NamedTuple):
    """Exact returns of an ensemble, and of the ideal clone with infinitely many demonstrations."""

    experts: Float[Array, " E"]
    greedy_experts: Float[Array, " E"]
    """Return of each expert that takes its most probable action; ties are shared."""
    clone: Float[Array, ""]
    """Return of π_o with posterior weights."""
    greedy_clone: Float[Array, ""]
    worst_start: Float[Array, ""]
    """Smallest return of any greedy expert from any start."""


class TrapReport(NamedTuple):
    """The result of ``train``."""

    returns: TrapReturns
    trapped: Bool[Array, ""]
    """Whether the restart that was kept is a trap ensemble."""
    from_every_start: Bool[Array, ""]
    """Whether its greedy experts keep ``min_start_return`` as well."""
    num_trapped: Int[Array, ""]
    """Number of the R restarts that are trap ensembles."""


def train(
    key: PRNGKey, mdp: FiniteMDP, num_experts: int, config: TrapConfig | None = None
) -> tuple[Float[Array, "E S A"], TrapReport]:
    """Train from several first logits, and keep the ensemble that meets its requirements best.

    The selection sees exact returns only, never a sampled clone. ``config`` is static under
    ``jax.jit``.
    """
    config = TrapConfig() if config is None else config
    short = dataclasses.replace(mdp, horizon=min(config.train_horizon, mdp.horizon))

    def one(key):
        def objective_fn(logits, progress):
            return trap_objective(logits, short, config, progress)

        rates = (config.learning_rate, config.lr_end_fraction, config.weight_decay)
        logits = exact.ascend(key, mdp, objective_fn, num_experts, config.num_updates, *rates)
        return logits, trap_returns(logits, mdp)

    logits, returns = jax.vmap(one)(jax.random.split(key, config.num_restarts))
    slacks = jax.vmap(slack, in_axes=(0, None))(returns, config)
    trapped, everywhere = slacks >= 0, returns.worst_start >= config.min_start_return
    # Slacks are at most one: a trap from every start goes before all others.
    best = jnp.argmax(slacks + jnp.where(trapped & everywhere, 2.0, 0.0))
    kept, of_kept = jax.tree.map(lambda x: x[best], (logits, returns))
    return kept, TrapReport(of_kept, trapped[best], everywhere[best], jnp.sum(trapped))


def trap_objective(
    logits: Float[Array, "E S A"],
    mdp: FiniteMDP,
    config: TrapConfig,
    progress: Float[Array, ""] | float,
) -> Float[Array, ""]:
    """The objective of one restart, which it maximises.

        mean_c mean_T mean_s U(V(s; temper(π_c, T))) − β(progress)/E · J(temper(π_o, T_o)),
        U(V) = V − V² / 2u

    with the mean over starts s. π_o has posterior weights, and gradients flow through them, because
    the way of an expert decides where it has the majority. The slope of U at a return of −u is
    twice its slope at zero, so that no start is sacrificed for the others. U is meant for returns
    below zero, and falls for returns above u. The progress is the share of the run that is done.
    """
    log_probs = jax.nn.log_softmax(logits)
    values = jax.vmap(lambda t: _values(mdp, log_probs, t))(jnp.array(config.expert_temperatures))
    utilities = mdp.mean_over_starts(values - jnp.square(values) / (2.0 * config.utility_scale))
    clone = _pooled(mdp, log_probs)
    decay = 1.0 + (config.beta_end_fraction - 1.0) * progress
    beta = config.beta * decay / logits.shape[0]
    return jnp.mean(utilities) - beta * _deployed(mdp, clone, config.clone_temperature)


def trap_returns(logits: Float[Array, "E S A"], mdp: FiniteMDP) -> TrapReturns:
    """Exact returns of the experts and of their clone over the whole horizon."""
    log_probs = jax.nn.log_softmax(logits)
    clone = _pooled(mdp, log_probs)
    greedy_values = _values(mdp, log_probs, 0.0)
    return TrapReturns(
        experts=mdp.mean_over_starts(_values(mdp, log_probs, 1.0)),
        greedy_experts=mdp.mean_over_starts(greedy_values),
        clone=_deployed(mdp, clone, 1.0),
        greedy_clone=_deployed(mdp, clone, 0.0),
        worst_start=jnp.min(jnp.where(mdp.start[None] > 0, greedy_values, jnp.inf)),
    )


def slack(returns: TrapReturns, config: TrapConfig) -> Float[Array, ""]:
    """Distance to the tightest bound, as a share of it; 0 or more for a trap ensemble."""
    experts = jnp.min(returns.experts) - config.min_return
    greedy = jnp.min(returns.greedy_experts) - config.min_greedy_return
    clone = config.max_clone_return - returns.greedy_clone
    bounds = jnp.array([config.min_return, config.min_greedy_return, config.max_clone_return])
    return jnp.min(jnp.stack([experts, greedy, clone]) / jnp.abs(bounds))


def _pooled(mdp: FiniteMDP, log_probs: Float[Array, "E S A"]) -> Float[Array, "S A"]:
    """Log-probabilities of π_o with posterior weights, through which gradients flow."""
    log_weights = tabular.observer_weights(mdp, jnp.exp(log_probs), "posterior")
    return jax.vmap(mixture.mixture_log_probs, in_axes=(1, 0))(log_probs, log_weights)


def _deployed(
    mdp: FiniteMDP, log_probs: Float[Array, "S A"], temperature: Float[Array, ""] | float
) -> Float[Array, ""]:
    """J(temper(π, T))."""
    return mdp.mean_over_starts(_values(mdp, log_probs[None], temperature)[0])


def _values(
    mdp: FiniteMDP, log_probs: Float[Array, "E S A"], temperature: Float[Array, ""] | float
) -> Float[Array, "E S"]:
    """Return of temper(π_c, T) from each state, for every expert."""

    def one(log_probs):
        tempered = jax.vmap(mixture.temper, in_axes=(0, None))(log_probs, temperature)
        return tabular.state_values(mdp, jnp.exp(tempered))

    return jax.vmap(one)(log_probs)
