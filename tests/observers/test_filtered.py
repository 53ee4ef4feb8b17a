import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand_made import show, steps
from hypothesis import given, settings
from hypothesis import strategies as st

from ape_jax.demonstrations import episodes
from ape_jax.observers import Filtered, TabularCloning

CLONING = TabularCloning(9, 5)


def paying(returns, ends=None, limits=()):
    """Episodes of two steps, of which the second pays the return."""
    count = len(returns)
    reward = np.stack([np.zeros(count), returns], axis=1).ravel()
    ends = range(count) if ends is None else ends
    return steps(
        np.zeros(2 * count, int), np.zeros(2 * count, int), [2] * count, reward, ends, limits
    )


def kept(shown, share):
    weights = np.asarray(Filtered(CLONING, share).weights(shown))
    np.testing.assert_array_equal(weights[::2], weights[1::2])
    assert set(weights) <= {0.0, 1.0}
    return np.flatnonzero(weights[::2]).tolist()


def test_the_best_share_of_the_episodes_is_kept():
    shown = paying([3.0, -1.0, 7.0, 0.0, 5.0, 2.0, 6.0, 1.0])
    assert kept(shown, 0.5) == [0, 2, 4, 6]
    assert kept(shown, 0.25) == [2, 6]
    assert kept(shown, 0.01) == [2]
    assert kept(shown, 1.0) == list(range(8))


def test_equal_returns_are_kept_or_left_together():
    shown = paying([1.0, 2.0, 2.0, 2.0, 0.0, 0.0])
    assert kept(shown, 0.2) == [1, 2, 3]
    assert kept(shown, 0.5) == [1, 2, 3]


def test_episodes_without_an_end_do_not_count():
    shown = paying([9.0, 1.0, 2.0, 8.0, 3.0], ends=[1, 4], limits=[2])
    assert kept(shown, 0.3) == [4]
    assert kept(shown, 1.0) == [1, 2, 4]


def test_they_count_where_there_is_no_other():
    assert kept(paying([9.0, 1.0, 2.0, 8.0], ends=[]), 0.5) == [0, 3]


@given(st.lists(st.integers(-50, 50), min_size=8, max_size=8, unique=True), st.data())
@settings(max_examples=40, deadline=None)
def test_whoever_is_kept_is_better_than_whoever_is_not(returns, data):
    share = data.draw(st.sampled_from([0.1, 0.25, 0.5]))
    chosen = kept(paying(np.array(returns, float)), share)
    left = set(range(8)) - set(chosen)
    assert min(returns[i] for i in chosen) > max(returns[i] for i in left)
    assert share * 7 <= len(chosen) <= share * 7 + 1


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_equal_returns_make_it_plain_cloning(share, small_task):
    """Episodes of any length that all pay one at their end."""
    shown = show(small_task.world, np.full((9, 5), 0.2), 4_000)
    ends = shown.terminated | shown.truncated
    shown = shown._replace(reward=ends.astype(jnp.float32))
    complete = jax.tree.map(lambda x: x[np.asarray(episodes.complete(shown))], shown)
    ours, plain = (
        observer.fit(jax.random.key(0), complete)
        for observer in (Filtered(CLONING, share), CLONING)
    )
    np.testing.assert_array_equal(ours.table.log_probs, plain.table.log_probs)


def test_it_is_the_clone_of_what_is_kept(small_task):
    shown = show(small_task.world, np.full((9, 5), 0.2), 4_000)
    observer = Filtered(CLONING, 0.25)
    ours = observer.fit(jax.random.key(0), shown)
    rows = np.flatnonzero(observer.weights(shown))
    expected = CLONING.fit(jax.random.key(0), jax.tree.map(lambda x: x[rows], shown))
    np.testing.assert_array_equal(ours.table.log_probs, expected.table.log_probs)
    assert 0 < len(rows) < 2_000
