"""Records with numbers that nobody measured: small, and different everywhere."""

import dataclasses

import numpy as np

from ape_jax.algorithms.task import make_task
from ape_jax.config import PGConfig, PGHypers, RunConfig
from ape_jax.envs import GridWorld
from ape_jax.evaluation.attackers import threat_of
from ape_jax.evaluation.audit_records import Audit, AuditRow, Curve, Defence, ThreatRow
from ape_jax.evaluation.intervals import Interval, MeanStd
from ape_jax.evaluation.reproduce import Panels
from ape_jax.evaluation.summary import Summary
from ape_jax.evaluation.sweep import Sweep, SweepPoint, compare
from ape_jax.observers.threats import THREATS
from ape_jax.reporting import html
from ape_jax.settings.audit import AuditSettings

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


def around(seeds, half=1.0):
    """Deviations of the seeds, which sum to zero."""
    return np.linspace(-half, half, seeds) if seeds > 1 else np.zeros(1)


def summary(seeds=2, greedy=0.9, **changes):
    """The summary of two experts; the second returns a little less than the first."""
    experts = PE + np.array([0.5, -0.5]) + around(seeds)[:, None]
    record = Summary(
        pe_return=MeanStd.over_seeds(experts.mean(axis=1)),
        expert_returns=MeanStd.over_seeds(experts),
        greedy_experts=MeanStd.over_seeds(
            RANDOM + np.broadcast_to(greedy, (seeds, 2)) * (PE - RANDOM)
        ),
        mixture=MeanStd.over_seeds(RANDOM + 0.5 + around(seeds)),
        random_return=RANDOM,
        random_std=20.0,
        dead_experts=((False, False),) * seeds,
        evaluation="exact",
        num_updates=20,
        fingerprint="f" * 64,
        train_seconds=12.0,
    )
    return dataclasses.replace(record, **changes)


def row(observer, deployment, share, seeds=2, defence="run"):
    """A row whose share has an interval of 0.038 to each side, for two seeds."""
    shares = share + around(seeds, 0.003)
    return AuditRow(
        defence=defence,
        observer=observer,
        deployment=deployment,
        sees=threat_of(observer, deployment) or "experts",
        clone_return=Interval.over_seeds(RANDOM + shares * (PE - RANDOM)),
        gap=Interval.over_seeds((1 - shares) * (PE - RANDOM)),
        fraction=Interval.over_seeds(shares),
        agreement=Interval.over_seeds(0.5 + 0.1 * around(seeds, 0.003)),
        log_likelihood=None,
    )


def defence(name="run", label="run", seeds=2, **changes):
    """Made-up numbers of an ensemble."""
    record = Defence(
        name=name,
        label=label,
        num_experts=2,
        pe_return=Interval.over_seeds(PE + around(seeds)),
        floor=Interval.over_seeds(PE + around(seeds) - 0.5),
        posterior_entropy=(Interval.over_seeds([0.7, 0.6]), Interval.over_seeds([0.3, 0.2])),
    )
    return dataclasses.replace(record, **changes)


def strongest(rows):
    """The strongest of these rows under each threat model."""
    found = []
    for threat, model in THREATS.items():
        allowed = [row for row in rows if row.sees in model.includes]
        if allowed:
            best = max(allowed, key=lambda row: row.clone_return.mean)
            found.append(
                ThreatRow(
                    defence=best.defence,
                    threat=threat,
                    attacker=best.observer,
                    deployment=best.deployment,
                    clone_return=best.clone_return,
                    fraction=best.fraction,
                    episodes_needed=None if threat == "interactive" else 1234.4,
                )
            )
    return tuple(found)


def audit(seeds=2, shares=CLONES, **changes):
    """The audit of the run's ensemble, with curves of two threat models."""
    curves = tuple(
        Curve(
            defence="run",
            threat=threat,
            num_steps=10 * episodes,
            episodes=float(episodes),
            attacker="behaviour_cloning",
            deployment="sampled",
            clone_return=Interval.over_seeds([-50.0, -50.0 + episodes]),
            fraction=Interval.over_seeds([share * episodes, share * episodes]),
        )
        for threat, share in (("pooled", 0.01), ("online", 0.02))
        for episodes in (10, 1)
    )
    rows = tuple(row(*kind, share, seeds) for kind, share in shares.items())
    record = Audit(
        env="GridWorld-ape",
        horizon=100,
        fingerprint="f" * 64,
        options=AuditSettings(quick=True),
        complete=True,
        seeds=seeds,
        num_steps=100_000,
        random_return=RANDOM,
        optimal_return=-9.09,
        threats=strongest(rows),
        rows=rows,
        defences=(defence(seeds=seeds),),
        curves=curves,
        skipped={"mean_action": "is for continuous actions"},
        wall_seconds=34.0,
    )
    return dataclasses.replace(record, **changes)


def sweep(**changes):
    """Two weights, sampled and exact, against both observers."""
    points = tuple(
        SweepPoint(
            observer=observer,
            training=training,
            beta=beta,
            pe_return=Interval.over_seeds([-10.0 - beta, -11.0 - beta]),
            worst_expert=Interval.over_seeds([-11.0 - beta, -12.0 - beta]),
            clone_return=Interval.over_seeds([-50.0 * beta, -60.0 * beta]),
        )
        for observer in ("uniform", "greedy")
        for training in ("sampled", "exact")
        for beta in (1.0, 0.5)
    )
    record = Sweep(
        env="GridWorld-ape",
        head="tabular",
        num_experts=2,
        horizon=100,
        seeds=2,
        num_updates=10,
        points=points,
        comparison=compare(points),
    )
    return dataclasses.replace(record, **changes)


def sources(seeds=2, config=None, **changes):
    """Everything, of a run of twenty updates on nine cells."""
    config = RunConfig(PGConfig(num_updates=20), PGHypers(), seeds) if config is None else config
    updates = [
        {
            "update": update,
            "pe_return": [PE - 20 + update] * seeds,
            "expert_returns": [[PE - 20 + update, PE - 21 + update]] * seeds,
            "observer_return": [RANDOM + seed for seed in range(seeds)],
        }
        for update in range(20)
    ]
    policies = np.random.default_rng(0).dirichlet(np.ones(5), (5, 9)).astype(np.float32)
    observers = dict(zip(("mixture π_o", "BC, sampled", "BC, greedy"), policies[2:], strict=True))
    return html.Sources(
        name="some run",
        task=make_task(PGConfig(), GridWorld(size=3, goal=(0, 1), horizon=8)),
        config=config,
        summary=summary(seeds),
        updates=updates,
        audit=audit(seeds),
        sweep=sweep(),
        panels=Panels({"expert 1": policies[0], "expert 2": policies[1]}, observers),
        facts={"trained with": "ape_jax 0.2.0"},
        commands={"the run": "ape-jax train", "this report": "ape-jax report"},
    )._replace(**changes)
