"""Summaries of one number over seeds: how large it is, how much it varies, whether it differs."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

Values = ArrayLike | Sequence[Any]

ASSIGNMENTS = 200_000
"""Assignments to two groups that a permutation test counts; those of ten and ten are fewer."""

ROUNDING = 1e-12
"""Sums whose relative difference is smaller count as equal."""


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
    def over_seeds(cls, values: Values) -> "Interval":
        """Mean over seeds [K], with the interval of Student's t for that mean.

        Examples:
          >>> Interval.over_seeds([-12.0, -12.0, -12.0])
          Interval(mean=-12.0, low=-12.0, high=-12.0, values=(-12.0, -12.0, -12.0))
          >>> round(Interval.over_seeds([-12.0, -13.0, -14.0]).low, 2)
          -15.48
        """
        values = np.asarray(values, np.float64)
        return cls._of(values, student_ends(values) if len(values) > 1 else None)

    @classmethod
    def of_differences(cls, a: Values, b: Values) -> "Interval":
        """Mean of a − b, for values [K] of the same seeds in the same order.

        Raises:
          ValueError: there are not as many values in a as in b.

        Examples:
          >>> Interval.of_differences([3.0, 5.0], [1.0, 3.0]).ends
          (2.0, 2.0)
        """
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if a.shape != b.shape:
            raise ValueError(f"a and b must have the same seeds; got {a.shape} and {b.shape}")
        return cls.over_seeds(a - b)

    @classmethod
    def percentiles(cls, values: Values) -> "Interval":
        """Mean and middle 95 % of values [K] that are bootstrap replicates already.

        Examples:
          >>> Interval.percentiles([0.0, 1.0]).low
          0.025
        """
        values = np.asarray(values, np.float64)
        return cls._of(values, np.quantile(values, (0.025, 0.975)) if len(values) > 1 else None)

    @classmethod
    def _of(cls, values: np.ndarray, ends: np.ndarray | None) -> "Interval":
        low, high = (None, None) if ends is None else map(float, ends)
        return cls(float(values.mean()), low, high, tuple(values.tolist()))

    @property
    def ends(self) -> tuple[float, float]:
        """The interval's ends; the mean twice where there is one value only."""
        if self.low is None or self.high is None:
            return self.mean, self.mean
        return self.low, self.high


def student_ends(values: Float[np.ndarray, "*trials K"]) -> Float[np.ndarray, "2 *trials"]:
    """Ends of the 95 % interval of Student's t for the mean over K values, with K at least two.

        mean ± t_{K−1}(0.975) · s / √K,       s the sample standard deviation

    For normal values it contains the true mean with probability 95 % for every K. Values that are
    all equal give a point, whatever the true mean is.
    """
    from scipy.special import stdtrit  # Not above: it takes a third of a second to import.

    num_values = values.shape[-1]
    mean = values.mean(axis=-1)
    error = values.std(axis=-1, ddof=1) / np.sqrt(num_values)
    half = stdtrit(num_values - 1, 0.975) * error
    return np.stack([mean - half, mean + half])


def permutation_test(a: Values, b: Values) -> float:
    """Two-sided p-value for the difference of the means of two groups [N] and [M].

    It is the share of assignments of all values to groups of these sizes whose means differ by at
    least as much as those observed. Where there are more than ``ASSIGNMENTS``, it counts so many
    random ones, and the observed one (Phipson and Smyth, arXiv 1603.05766).

    If a group does not matter, p ≤ x has at most the probability x, whatever the distribution.

    Raises:
      ValueError: a group is empty.

    Examples:
      >>> permutation_test([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
      0.1
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if not len(a) or not len(b):
        raise ValueError("both groups must have at least one value")
    # The difference of means is linear in the sum of the first group, from the mean of all.
    values, size = np.concatenate([a, b]), len(a)
    rounding = ROUNDING * np.abs(values).sum()
    values = values - values.mean()
    exact = math.comb(len(values), size) <= ASSIGNMENTS
    if exact:
        groups = np.array(list(itertools.combinations(range(len(values)), size)))
    else:
        every = np.tile(np.arange(len(values)), (ASSIGNMENTS, 1))
        groups = np.random.default_rng(0).permuted(every, axis=1)[:, :size]
    extreme = np.abs(values[groups].sum(axis=1)) >= abs(values[:size].sum()) - rounding
    return float(extreme.mean() if exact else (1 + extreme.sum()) / (1 + len(extreme)))


def holm(p_values: Values) -> Float[np.ndarray, " N"]:
    """P-values of N tests, adjusted by Holm's method for looking at all of them.

        p'_(i) = max_{j ≤ i} min(1, (N − j + 1) p_(j)),      p_(1) ≤ p_(2) ≤ …

    Rejecting where p' ≤ 0.05 rejects some true hypothesis with probability 5 % at most, however the
    tests depend on each other (Holm, 1979).

    Examples:
      >>> holm([0.04, 0.01]).tolist()
      [0.04, 0.02]
    """
    p_values = np.asarray(p_values, np.float64)
    order = np.argsort(p_values)
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, factors * p_values[order]))
    return adjusted


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
