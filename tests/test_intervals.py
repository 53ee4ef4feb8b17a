"""Summaries over seeds: against oracles, by simulation, and where values are few or equal."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ape_jax.evaluation import intervals
from ape_jax.evaluation.intervals import Interval, MeanStd, holm, permutation_test, student_ends

SKEWED_A, SKEWED_B = (0.1, 0.4, 9.0, 0.2), (0.3, 1.1, 2.0, 0.7, 30.0)


def test_mean_and_sample_deviation_are_over_seeds():
    summary = MeanStd.over_seeds([1.0, 3.0])
    assert (summary.mean, summary.values) == (2.0, (1.0, 3.0))
    assert summary.std == pytest.approx(np.sqrt(2))
    assert MeanStd.over_seeds(jnp.array([5.0])).std == 0.0
    assert MeanStd.over_seeds([[1.0, 2.0], [3.0, 6.0]]).mean == (2.0, 4.0)


@pytest.mark.parametrize("num_values", [3, 5, 10])
def test_95_of_100_intervals_of_normal_values_contain_the_true_mean(num_values):
    values = np.random.default_rng(0).normal(3.0, 2.0, (20_000, num_values))
    low, high = student_ends(values)
    assert 0.93 <= np.mean((low <= 3.0) & (high >= 3.0)) <= 0.97


def test_interval_over_seeds_is_the_one_of_the_t_test():
    values = np.array(SKEWED_B)
    interval = Interval.over_seeds(values)
    oracle = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert interval.ends == pytest.approx((oracle.low, oracle.high))
    assert (interval.mean, interval.values) == (pytest.approx(values.mean()), SKEWED_B)


def test_differences_are_paired():
    """The seeds differ much more than the two numbers of a seed."""
    seeds = np.array([-10.0, 0.0, 40.0])
    interval = Interval.of_differences(seeds + 1.0, seeds)
    assert interval == Interval.over_seeds([1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="same seeds"):
        Interval.of_differences(seeds, [1.0])


@pytest.mark.parametrize("kind", [Interval.over_seeds, Interval.percentiles])
def test_interval_of_equal_values_is_a_point_and_of_one_value_is_none(kind):
    assert kind([2.0, 2.0, 2.0]).ends == (2.0, 2.0)
    assert kind([2.0]) == Interval(2.0, None, None, (2.0,))


def test_p_value_is_the_share_of_assignments_that_differ_as_much():
    """Counted in another way: over all orders of the values, by the difference of the means."""
    values, size = np.array(SKEWED_A + SKEWED_B[:3]), len(SKEWED_A)
    orders = values[np.array(list(itertools.permutations(range(len(values)))))]
    differences = np.abs(orders[:, :size].mean(axis=1) - orders[:, size:].mean(axis=1))
    expected = np.mean(differences >= differences[0] - 1e-9)
    assert permutation_test(SKEWED_A, SKEWED_B[:3]) == pytest.approx(expected)
    assert 0.0 < expected < 1.0


@pytest.mark.parametrize("size", [4, 10])
def test_p_value_of_groups_that_do_not_overlap_is_two_of_all_assignments(size):
    low = np.random.default_rng(0).normal(size=size)
    p_value = permutation_test(low, low + 100.0)
    assert p_value == pytest.approx(2 / math.comb(2 * size, size))
    assert permutation_test(low + 100.0, low) == p_value


def test_p_values_are_uniform_where_groups_do_not_matter():
    rng = np.random.default_rng(0)
    values = rng.exponential(size=(2_000, 9)) ** 2
    p_values = np.array([permutation_test(line[:4], line[4:]) for line in values])
    for level in (0.05, 0.2, 0.5):
        error = np.sqrt(level * (1 - level) / len(values))
        assert abs(np.mean(p_values <= level) - level) <= 4 * error + 1 / 126


def test_random_assignments_give_nearly_the_p_value_of_all(monkeypatch):
    exact = permutation_test(SKEWED_A, SKEWED_B)
    monkeypatch.setattr(intervals, "ASSIGNMENTS", 100)
    sampled = permutation_test(SKEWED_A, SKEWED_B)
    assert sampled != exact
    assert sampled == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 100))
    assert permutation_test([0.0] * 8, [1.0] * 8) == 1 / 101


def test_equal_values_do_not_differ_and_an_empty_group_is_refused():
    assert permutation_test([0.1] * 3, [0.1] * 4) == 1.0
    assert permutation_test([1.0], [2.0]) == 1.0
    with pytest.raises(ValueError, match="at least one"):
        permutation_test([], [1.0])


def test_holm_multiplies_the_smallest_most_and_keeps_the_order():
    adjusted = holm([0.03, 0.01, 0.02, 0.9])
    np.testing.assert_allclose(adjusted, [0.06, 0.04, 0.06, 0.9])
    np.testing.assert_array_equal(holm([0.7]), [0.7])
    np.testing.assert_array_equal(holm([0.6, 0.7]), [1.0, 1.0])
