"""The examples in docstrings run, and print what they say."""

import doctest

import jax
import pytest

import ape_jax
from ape_jax.evaluation.intervals import Interval, MeanStd

DOCUMENTED = [
    ape_jax.audit,
    ape_jax.make_train,
    ape_jax.reproduce,
    ape_jax.suite,
    ape_jax.sweep,
    ape_jax.update_from_samples,
    Interval.bootstrap,
    Interval.percentiles,
    MeanStd.over_seeds,
]


@pytest.mark.parametrize("documented", DOCUMENTED, ids=lambda one: one.__name__)
def test_example_runs(documented):
    names = {"Interval": Interval, "MeanStd": MeanStd}
    (example,) = doctest.DocTestFinder(recurse=False).find(documented, globs=names)
    with jax.numpy_rank_promotion("allow"):
        result = doctest.DocTestRunner().run(example)
    assert (result.attempted > 0, result.failed) == (True, 0)
