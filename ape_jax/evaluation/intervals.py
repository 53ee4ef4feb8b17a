"""Summaries of one number over seeds: the mean, and how much it varies."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

Values = ArrayLike | Sequence[Any]


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    low: float | None
    """None where there is one value only, which says nothing about spread."""
    high: float | None
    values: tuple[float, ...]
    """One value for each seed, or for each resample."""

    @classmethod
    def bootstrap(cls, values: Values) -> "Interval":
        """Mean over seeds [K], with the percentile bootstrap interval of that mean.

        Examples:
          >>> Interval.bootstrap([-12.0, -13.0, -14.0])
          Interval(mean=-13.0, low=-14.0, high=-12.0, values=(-12.0, -13.0, -14.0))
        """

        def ends(values):
            from scipy.stats import bootstrap  # Not above: it takes half a second to import.

            rng = np.random.default_rng(0)
            return bootstrap((values,), np.mean, method="percentile", rng=rng).confidence_interval

        return cls._of(values, ends)

    @classmethod
    def percentiles(cls, values: Values) -> "Interval":
        """Mean and middle 95 % of values [K] that are bootstrap replicates already.

        Examples:
          >>> Interval.percentiles([0.0, 1.0]).low
          0.025
        """
        return cls._of(values, lambda values: np.quantile(values, (0.025, 0.975)))

    @classmethod
    def _of(cls, values: Values, ends: Callable[[np.ndarray], Any]) -> "Interval":
        values = np.asarray(values, np.float64)
        low, high = (None, None) if len(values) == 1 else map(float, ends(values))
        return cls(float(values.mean()), low, high, tuple(values.tolist()))

    @property
    def ends(self) -> tuple[float, float]:
        """The interval's ends; the mean twice where there is one value only."""
        if self.low is None or self.high is None:
            return self.mean, self.mean
        return self.low, self.high


Numbers = float | tuple[float, ...] | tuple[tuple[float, ...], ...]
"""A number, one for each expert [E], or one for each expert of each seed [K, E]."""


@dataclasses.dataclass(frozen=True)
class MeanStd:
    """Mean and sample standard deviation over seeds."""

    mean: Numbers
    std: Numbers
    """0 where there is one seed only."""
    values: Numbers
    """The numbers themselves; the first axis is the seed."""

    @property
    def array(self) -> np.ndarray:
        """The values [K, …]."""
        return np.asarray(self.values)

    @classmethod
    def over_seeds(cls, values: Values) -> "MeanStd":
        """Mean and deviation over the first axis of values [K, …].

        Examples:
          >>> MeanStd.over_seeds([1.0, 3.0])
          MeanStd(mean=2.0, std=1.4142135623730951, values=(1.0, 3.0))
        """
        values = np.asarray(values, np.float64)
        std = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros_like(values[0])
        return cls(_plain(values.mean(axis=0)), _plain(std), _plain(values))


def _plain(values: Values) -> Numbers:
    numbers = np.asarray(values).tolist()
    if not isinstance(numbers, list):
        return numbers
    return tuple(tuple(line) if isinstance(line, list) else line for line in numbers)
