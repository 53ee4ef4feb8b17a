import jax.numpy as jnp
import numpy as np
import pytest

from ape_jax.core import statistics


def test_merged_statistics_are_those_of_all_batches():
    numbers = np.random.default_rng(0).normal(3.0, [1.0, 5.0], (300, 2)).astype(np.float32)
    kept = statistics.init_statistics((2,))
    for part in np.split(numbers, [7, 100]):
        kept = statistics.merge(kept, jnp.asarray(part))
    np.testing.assert_allclose(kept.mean, numbers.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(kept.scale(), 1.0 / numbers.std(axis=0), rtol=1e-3)


def test_mean_of_the_newest_is_a_plain_one_until_there_are_enough():
    """Returns 1, 2, … come one by one; the first must not outweigh those that follow."""
    mean, means = jnp.float32(7.0), []
    for count in range(6):
        ended = jnp.array([[False, True]])
        mean = statistics.mean_of_newest(
            mean, jnp.int32(count), ended, jnp.array([[9.0, count + 1.0]]), 4
        )
        means.append(mean)
    later = [2.5 + (5 - 2.5) / 4]
    later += [later[0] + (6 - later[0]) / 4]
    np.testing.assert_allclose(means, [1.0, 1.5, 2.0, 2.5, *later], rtol=1e-6)
    two = jnp.array([[True, True], [True, True]]), jnp.array([[1.0, 2.0], [3.0, 4.0]])
    assert statistics.mean_of_newest(mean, jnp.int32(6), *two, 4) == 2.5
    none = statistics.mean_of_newest(mean, jnp.int32(6), jnp.zeros((2, 2), bool), two[1], 4)
    assert none == mean


def test_calibration_error_is_the_distance_of_confidence_from_accuracy():
    log_probs = jnp.log(jnp.tile(jnp.array([0.8, 0.2]), (10, 1)))
    right_of_ten = lambda right: jnp.where(jnp.arange(10) < right, 0, 1)  # noqa: E731
    error = statistics.expected_calibration_error
    assert float(error(log_probs, right_of_ten(8), jnp.ones(10))) == pytest.approx(0.0, abs=1e-6)
    assert float(error(log_probs, right_of_ten(3), jnp.ones(10))) == pytest.approx(0.5, abs=1e-6)
    four_times = jnp.where(jnp.arange(10) < 5, 4.0, 1.0)  # Five are right, and count for twenty.
    assert float(error(log_probs, right_of_ten(5), four_times)) == pytest.approx(0.0, abs=1e-6)


def test_calibration_error_does_not_cancel_between_bins():
    log_probs = jnp.log(jnp.array([[0.95, 0.05], [0.55, 0.45]]))
    labels = jnp.array([1, 0])  # Sure and wrong, then unsure and right.
    error = statistics.expected_calibration_error(log_probs, labels, jnp.ones(2))
    assert float(error) == pytest.approx((0.95 + 0.45) / 2, abs=1e-6)
