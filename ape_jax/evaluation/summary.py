"""The evaluation of a finished run: the content of ``summary.json``."""

import dataclasses

import jax

from ape_jax.algorithms.task import Task
from ape_jax.config import RunConfig
from ape_jax.evaluation import returns
from ape_jax.evaluation.intervals import MeanStd
from ape_jax.evaluation.records import OPTIONAL
from ape_jax.networks import EnsembleParams
from ape_jax.runs.metrics import fingerprint
from ape_jax.training.trainer import EVALUATE, RANDOM, seed_keys


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """Returns of an episode, undiscounted, over seeds."""

    pe_return: MeanStd
    """Return of the ensemble: the experts' mean."""
    expert_returns: MeanStd
    """Return of each expert [K, E]."""
    greedy_experts: MeanStd
    """Return of each expert, deployed greedily itself [K, E]."""
    mixture: MeanStd
    random_return: float
    random_std: float
    """Standard deviation of a random policy's return over episodes."""
    dead_experts: tuple[tuple[bool, ...], ...]
    evaluation: str
    """``exact``, or the number of episodes behind each return."""
    num_updates: int
    fingerprint: str
    min_return: float | None = dataclasses.field(default=None, metadata=OPTIONAL)
    train_seconds: float | None = dataclasses.field(default=None, metadata=OPTIONAL)
    """Seconds of training in this process; None where it was not timed."""
    multipliers: MeanStd | None = dataclasses.field(default=None, metadata=OPTIONAL)
    """Last multipliers of the constraint [K, E]."""


def summarise(task: Task, config: RunConfig, params: EnsembleParams) -> Summary:
    """Evaluate every seed's ensemble, with parameters [K, …]."""
    evaluate = jax.jit(jax.vmap(returns.ensemble_returns, (None, 0, 0)), static_argnums=0)
    found = evaluate(task, params.heads, seed_keys(config.first_seed, config.seeds, EVALUATE))
    at_random = returns.random_return(task.world, seed_keys(config.first_seed, 1, RANDOM)[0])
    collapsed = returns.collapsed_experts(found.experts, at_random)
    exact = task.world.mdp is not None
    return Summary(
        pe_return=MeanStd.over_seeds(found.pe),
        expert_returns=MeanStd.over_seeds(found.experts),
        greedy_experts=MeanStd.over_seeds(found.greedy_experts),
        mixture=MeanStd.over_seeds(found.mixture),
        random_return=at_random.mean,
        random_std=at_random.std,
        dead_experts=tuple(map(tuple, collapsed.tolist())),
        evaluation="exact" if exact else f"{returns.NUM_EPISODES} episodes a policy",
        num_updates=config.train.num_updates,
        fingerprint=fingerprint(params),
        min_return=config.hypers.min_return,
    )
