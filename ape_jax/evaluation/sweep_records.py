"""The records of a sweep, and the comparison of sampled with exact training."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ape_jax.evaluation.intervals import Interval

OBSERVERS = ("uniform", "greedy")
"""Observers that are trained against and then measured: the uniform mixture, which samples; and the
posterior mixture, which is trained against at a low temperature and measured greedily."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """All seeds of one β."""

    observer: str
    """The observer trained against, one of ``OBSERVERS``."""
    training: str
    """``sampled``, or ``exact`` by gradients of exact returns."""
    beta: float
    pe_return: Interval
    worst_expert: Interval
    clone_return: Interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Sampled training beside exact training of the same PE return."""

    observer: str
    beta: float
    """Weight that sampled training had."""
    pe_return: float
    sampled_gap: float
    """PE return minus clone return."""
    exact_gap: float
    """The same on the exact frontier."""
    ratio: float | None
    """The sampled gap over the exact one; None where the exact one is not positive."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """The content of ``sweep.json``."""

    env: str
    head: str
    num_experts: int
    horizon: int
    """Time limit of an episode, in steps."""
    seeds: int
    num_updates: int
    points: tuple[SweepPoint, ...] = ()
    comparison: tuple[Comparison, ...] = ()
    wall_seconds: float = 0.0


def compare(points: Sequence[SweepPoint]) -> tuple[Comparison, ...]:
    """The gap of sampled training beside the gap of exact training at the same PE return.

    The exact frontier is the line through the means of exact training over β. Points of sampled
    training that return more or less than all of the frontier are left out.
    """
    compared = []
    for observer in OBSERVERS:
        own = [point for point in points if point.observer == observer]
        frontier = sorted(
            (point.pe_return.mean, point.clone_return.mean)
            for point in own
            if point.training == "exact"
        )
        if len(frontier) < 2:
            continue
        pe_returns, clone_returns = zip(*frontier, strict=True)
        for point in own:
            pe_return = point.pe_return.mean
            within = pe_returns[0] <= pe_return <= pe_returns[-1]
            if point.training != "sampled" or not within:
                continue
            gap = pe_return - point.clone_return.mean
            exact_gap = pe_return - float(np.interp(pe_return, pe_returns, clone_returns))
            compared.append(
                Comparison(
                    observer=observer,
                    beta=point.beta,
                    pe_return=pe_return,
                    sampled_gap=gap,
                    exact_gap=exact_gap,
                    ratio=gap / exact_gap if exact_gap > 0 else None,
                )
            )
    return tuple(compared)
