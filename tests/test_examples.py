"""The examples in docstrings run, and print what they say."""

import doctest

import jax
import pytest

import ape_jax
from ape_jax.evaluation.intervals import Interval, MeanStd, holm, permutation_test

DOCUMENTED = [
    ape_jax.audit,
    ape_jax.make_train,
    ape_jax.reproduce,
    ape_jax.suite,
    ape_jax.sweep,
    ape_jax.update_from_samples,
    Interval.of_differences,
    Interval.over_seeds,
    Interval.percentiles,
    MeanStd.over_seeds,
    holm,
    permutation_test,
]


@pytest.mark.parametrize("documented", DOCUMENTED, ids=lambda one: one.__name__)
def test_example_runs(documented):
    named = Interval, MeanStd, holm, permutation_test
    names = {one.__name__: one for one in named}
    (example,) = doctest.DocTestFinder(recurse=False).find(documented, globs=names)
    with jax.numpy_rank_promotion("allow"):
        result = doctest.DocTestRunner().run(example)
    assert (result.attempted > 0, result.failed) == (True, 0)
