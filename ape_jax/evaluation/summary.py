"""The evaluation at the end of a training run: what ``summary.json`` says."""

from typing import Any

import jax

from ape_jax.algorithms.task import Task
from ape_jax.config import RunConfig
from ape_jax.evaluation import intervals, returns
from ape_jax.networks import EnsembleParams
from ape_jax.runs.metrics import fingerprint
from ape_jax.training.trainer import EVALUATE, RANDOM, seed_keys


def summarise(task: Task, config: RunConfig, params: EnsembleParams) -> dict[str, Any]:
    """Evaluate the ensembles of a run, one per seed.

    Args:
      task: what they were trained on.
      config: the settings of the run.
      params: their parameters [K, …].

    Returns:
      Undiscounted returns as means, deviations and values over seeds: of the ensemble, of each
      expert, of each greedy expert and of the uniform mixture; which experts collapsed; how it was
      evaluated; and the fingerprint of the parameters.
    """
    keys = seed_keys(config.first_seed, config.seeds, EVALUATE)
    found = _ensemble_returns(task, params.heads, keys)
    at_random = returns.random_return(task, seed_keys(config.first_seed, 1, RANDOM)[0])
    exact = task.world.mdp is not None
    summary = {
        "pe_return": intervals.over_seeds(found.pe),
        "expert_returns": intervals.over_seeds(found.experts),
        "greedy_experts": intervals.over_seeds(found.greedy_experts),
        "mixture": intervals.over_seeds(found.mixture),
        "random_return": at_random.mean,
        "random_std": at_random.std,
        "dead_experts": returns.dead_experts(found.experts, at_random).tolist(),
        "evaluation": "exact" if exact else f"{returns.NUM_EPISODES} episodes a policy",
        "num_updates": config.train.num_updates,
        "fingerprint": fingerprint(params),
    }
    if config.hypers.min_return is not None:
        summary["min_return"] = config.hypers.min_return
    return summary


_ensemble_returns = jax.jit(jax.vmap(returns.ensemble_returns, (None, 0, 0)), static_argnums=0)
