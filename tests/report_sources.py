"""What a report is made of, with numbers that nobody measured: small, and different everywhere."""

import numpy as np

from ape_jax.config import PGConfig, PGHypers, RunConfig
from ape_jax.envs import GridWorld
from ape_jax.evaluation.intervals import interval, over_seeds
from ape_jax.reporting import html

RANDOM, PE = -90.0, -10.0
"""Returns: a clone's share is linear between them."""
CLONES = {
    ("behaviour_cloning", "sampled"): 1.0,
    ("behaviour_cloning", "greedy"): 0.09,
    ("latent", "best"): 1.04,
    ("dagger", "greedy"): -0.05,
    ("recurrent", "sampled"): 0.52,
    ("mixture", "sampled"): -0.01,
}
"""Mean shares."""


def summary(seeds=2, greedy=0.9, **changes):
    """Of two experts; the second returns a little less than the first."""
    around = np.linspace(-1.0, 1.0, seeds) if seeds > 1 else np.zeros(1)
    experts = np.stack([PE + 0.5 + around, PE - 0.5 + around], axis=1)
    greedy_experts = RANDOM + np.broadcast_to(greedy, (seeds, 2)) * (PE - RANDOM)
    return {
        "pe_return": over_seeds(experts.mean(axis=1)),
        "expert_returns": over_seeds(experts),
        "greedy_experts": over_seeds(greedy_experts),
        "mixture": over_seeds(RANDOM + 0.5 + around),
        "random_return": RANDOM,
        "random_std": 20.0,
        "dead_experts": np.zeros((seeds, 2), bool).tolist(),
        "evaluation": "exact",
        "num_updates": 20,
        "fingerprint": "f" * 64,
        "train_seconds": 12.0,
    } | changes


def audit(seeds=2, shares=CLONES, learned=True, **changes):
    """Of the run's ensemble alone; every share spreads by 0.04 over seeds."""
    around = np.linspace(-0.04, 0.04, seeds) if seeds > 1 else np.zeros(1)
    rows = []
    for (observer, deployment), share in shares.items():
        values = share + around
        rows.append(
            {
                "defence": "run",
                "observer": observer,
                "deployment": deployment,
                "sees": "all steps",
                "clone_return": interval(RANDOM + values * (PE - RANDOM)),
                "fraction": interval(values) if learned else None,
                "agreement": interval(0.5 + 0.1 * around),
            }
        )
    defence = {
        "name": "run",
        "label": "run",
        "num_experts": 2,
        "pe_return": interval(PE + around),
        "floor": interval(PE + around - 0.5),
    }
    return {
        "env": "GridWorld-ape",
        "horizon": 100,
        "fingerprint": "f" * 64,
        "options": dict.fromkeys(("defences", "seeds", "steps"))
        | {"observers": "all", "quick": True},
        "complete": True,
        "seeds": seeds,
        "num_steps": 100_000,
        "random_return": RANDOM,
        "optimal_return": -9.09,
        "rows": rows,
        "defences": [defence],
        "skipped": {"mean_action": "is for continuous actions"},
        "wall_seconds": 34.0,
    } | changes


def sweep():
    """Two weights, sampled and exact."""
    points = [
        {
            "observer": "uniform",
            "training": training,
            "beta": beta,
            "pe_return": interval([-10.0 - beta, -11.0 - beta]),
            "clone_return": interval([-50.0 * beta, -60.0 * beta]),
        }
        for training in ("sampled", "exact")
        for beta in (0.5, 1.0)
    ]
    return {
        **{"env": "GridWorld-ape", "head": "tabular", "num_experts": 2, "horizon": 100},
        **{"seeds": 2, "num_updates": 10, "points": points},
    }


def policies(num_experts=2):
    """Random ones on nine cells."""
    env = GridWorld(size=3, goal=(0, 1), horizon=8)
    drawn = np.random.default_rng(0).dirichlet(np.ones(5), (num_experts + 3, 9))
    names = ("mixture π_o", "clone, sampled", "clone, greedy")
    observers = dict(zip(names, drawn[num_experts:], strict=True))
    return html.Policies(env, env.finite_mdp(), 3, 1_000, drawn[:num_experts], observers)


def sources(seeds=2, **changes):
    """Everything, of a run of twenty updates."""
    updates = [
        {
            "update": update,
            "pe_return": [PE - 20 + update] * seeds,
            "expert_returns": [[PE - 20 + update, PE - 21 + update]] * seeds,
            "observer_return": [RANDOM + seed for seed in range(seeds)],
        }
        for update in range(20)
    ]
    return html.Sources(
        name="some run",
        config=RunConfig(PGConfig(num_updates=20), PGHypers(), seeds),
        summary=summary(seeds),
        updates=updates,
        audit=audit(seeds),
        sweep=sweep(),
        policies=policies(),
        facts={"trained with": "ape_jax 0.1.0"},
        commands={"the run": "ape-jax train", "this report": "ape-jax report"},
    )._replace(**changes)
