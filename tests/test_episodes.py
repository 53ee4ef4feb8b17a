import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand_made import steps
from hypothesis import given, settings
from hypothesis import strategies as st

from ape_jax.demonstrations import episodes

COUNT = 12
RETURNS_TO_GO = jax.jit(episodes.returns_to_go)

# Episodes of 3, 1, 2 and 2 steps: an end, a time limit, an end, and one that is cut.
SHOWN = steps(
    observation=np.arange(8),
    action=np.arange(10, 18),
    lengths=[3, 1, 2, 2],
    reward=[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0],
    ends=[0, 2],
    limits=[1],
)


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=COUNT).filter(lambda x: sum(x) <= COUNT),
    st.lists(st.floats(-10, 10, width=32), min_size=COUNT, max_size=COUNT),
    st.sampled_from([0.0, 0.5, 0.99, 1.0]),
)
@settings(max_examples=60, deadline=None)
def test_returns_to_go_are_those_of_a_loop(lengths, rewards, gamma):
    lengths = [*lengths, *[1] * (COUNT - sum(lengths))]
    shown = steps(np.zeros(COUNT, int), np.zeros(COUNT, int), lengths)
    expected = np.array(rewards, np.float64)
    for step in reversed(range(COUNT - 1)):
        if shown.episode[step] == shown.episode[step + 1]:
            expected[step] += gamma * expected[step + 1]
    ours = RETURNS_TO_GO(shown, jnp.asarray(rewards, jnp.float32), gamma)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-4)


def test_first_and_last_steps():
    np.testing.assert_array_equal(episodes.begins(SHOWN), [1, 0, 0, 1, 1, 0, 1, 0])
    np.testing.assert_array_equal(episodes.last(SHOWN), [0, 0, 1, 1, 0, 1, 0, 1])


def test_what_follows_stays_in_the_episode():
    after = episodes.following(SHOWN)
    np.testing.assert_array_equal(after.known, [1, 1, 0, 0, 1, 0, 1, 0])
    np.testing.assert_array_equal(after.observation[after.known], [1, 2, 5, 7])
    np.testing.assert_array_equal(after.ended, SHOWN.terminated)


def test_marks_count_for_the_whole_episode():
    np.testing.assert_array_equal(episodes.complete(SHOWN), [1, 1, 1, 1, 1, 1, 0, 0])


def test_returns_of_whole_episodes():
    returns = [7, 7, 7, 8, 48, 48, 192, 192]
    np.testing.assert_array_equal(episodes.episode_returns(SHOWN), returns)


@pytest.mark.parametrize("first", [0, 100])
def test_the_first_number_of_an_episode_does_not_matter(first):
    moved = SHOWN._replace(episode=SHOWN.episode + first)
    for function in (episodes.episode_returns, episodes.complete, episodes.begins):
        np.testing.assert_array_equal(function(moved), function(SHOWN))


def test_the_action_before():
    np.testing.assert_array_equal(episodes.last_actions(SHOWN), [-1, 10, 11, -1, -1, 14, -1, 16])
    vectors = SHOWN._replace(action=jnp.stack([SHOWN.action, -SHOWN.action], axis=1) / 2)
    ours = episodes.last_actions(vectors)
    np.testing.assert_array_equal(ours[:3], [[-1, -1], [5, -5], [5.5, -5.5]])
