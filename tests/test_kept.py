"""Trained experts that are kept on disk."""

import jax
import numpy as np
import pytest

from ape_jax import _version
from ape_jax.evaluation import kept

SETTINGS = {"env": "GridWorld-ape", "seeds": 2, "beta": 0.3}


@pytest.fixture(scope="module")
def heads(small_task):
    keys = jax.random.split(jax.random.key(0), 2)
    return jax.vmap(lambda key: small_task.networks.init(key).heads)(keys)


@pytest.fixture
def path(small_task, heads, tmp_path):
    path = tmp_path / "new" / "heads.safetensors"
    kept.save(path, small_task, SETTINGS, heads)
    return path


def test_heads_come_back_as_they_were(path, small_task, heads):
    again = kept.load(path, small_task, dict(reversed(SETTINGS.items())))
    assert jax.tree.structure(again) == jax.tree.structure(heads)
    for ours, expected in zip(jax.tree.leaves(again), jax.tree.leaves(heads), strict=True):
        np.testing.assert_array_equal(ours, expected)
    assert [one.name for one in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("change", [{"seeds": 3}, {"beta": 0.31}, {"more": None}])
def test_other_settings_are_other_experts(change, path, small_task):
    assert kept.load(path, small_task, SETTINGS | change) is None


def test_another_version_trains_again(path, small_task, monkeypatch):
    monkeypatch.setattr(kept, "__version__", _version.__version__ + ".1")
    assert kept.load(path, small_task, SETTINGS) is None


@pytest.mark.parametrize("keep", [0, 7, 40, -1])
def test_a_damaged_file_is_none(keep, path, small_task):
    path.write_bytes(path.read_bytes()[:keep])
    assert kept.load(path, small_task, SETTINGS) is None


def test_a_file_that_is_not_there_is_none(small_task, tmp_path):
    assert kept.load(tmp_path / "absent", small_task, SETTINGS) is None


def test_saving_again_replaces(path, small_task, heads):
    other = jax.tree.map(lambda x: x + 1.0, heads)
    kept.save(path, small_task, SETTINGS, other)
    again = kept.load(path, small_task, SETTINGS)
    np.testing.assert_array_equal(jax.tree.leaves(again)[0], jax.tree.leaves(other)[0])
