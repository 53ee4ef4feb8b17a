"""Observations are coin tosses, and an action repeats the toss before: one frame cannot tell."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand_made import steps
from probes import Probe

from ape_jax.algorithms.task import make_task
from ape_jax.config import PGConfig, PPOConfig
from ape_jax.evaluation.deployment import step_log_probs
from ape_jax.observers import FrameStack
from ape_jax.observers.frame_stack import Frames, FrameStackPolicy

LOG_PROBS = jax.jit(step_log_probs)
LENGTH = 8


def tosses(seed, num_episodes=100):
    toss = np.random.default_rng(seed).integers(0, 2, (num_episodes, LENGTH))
    action = np.concatenate([np.zeros((num_episodes, 1), int), toss[:, :-1]], axis=1)
    return steps(toss.ravel(), action.ravel(), [LENGTH] * num_episodes)


@pytest.fixture(scope="module")
def networks():
    return make_task(PGConfig(head="tabular"), Probe(lambda shown, action: 0.0)).networks


@pytest.fixture(scope="module")
def continuous():
    probe = Probe(lambda shown, action: 0.0, continuous=True)
    return make_task(PPOConfig(head="gaussian", hidden_sizes=(4,)), probe).networks


def observer(networks, num_frames):
    return FrameStack(
        networks, num_frames, (16,), num_updates=300, batch_size=128, learning_rate=1e-2
    )


@pytest.mark.parametrize(("num_frames", "learns"), [(1, False), (2, True), (4, True)])
def test_it_learns_what_the_observation_before_decides(num_frames, learns, networks):
    clone = jax.jit(observer(networks, num_frames).fit)(jax.random.key(0), tosses(0))
    fresh = tosses(1)
    first = np.diff(fresh.episode, prepend=-1) != 0
    probs = np.exp(LOG_PROBS(clone, fresh))
    assert np.all(probs[first] > 0.9)  # The first action is always 0.
    if learns:
        assert np.all(probs[~first] > 0.9)
    else:
        # The action before is the toss but one before, so it says nothing of the next.
        assert np.mean(probs[~first]) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("kind", ["networks", "continuous"])
def test_frames_of_rows_are_those_that_the_policy_remembers(kind, request):
    """And so windows hold nothing of other episodes."""
    networks = request.getfixturevalue(kind)
    lengths = [1, 3, 2, 5, 1, 4]
    count, generator = sum(lengths), np.random.default_rng(0)
    shown = steps(generator.integers(0, 2, count), generator.integers(0, 2, count), lengths)
    if kind == "continuous":
        shown = shown._replace(
            observation=jnp.asarray(generator.normal(size=(count, 1)), jnp.float32),
            action=jnp.asarray(generator.normal(size=(count, 1)), jnp.float32),
        )
    frames = Frames(networks, 3, (4,))
    params = frames.networks.head.init(jax.random.key(0), jnp.zeros(3 * frames.size))
    policy = FrameStackPolicy(params, frames)
    expected, carry = [], None
    for row in range(count):
        first = row == 0 or shown.episode[row] != shown.episode[row - 1]
        carry = policy.initial_carry() if first else carry
        last = -jnp.ones_like(shown.action[row]) if first else shown.action[row - 1]
        carry, _ = policy(carry, shown.observation[row], last)
        expected.append(np.ravel(carry))
    rows = jnp.asarray(generator.permutation(count))
    ours = np.asarray(frames.of_rows(shown, rows))
    np.testing.assert_allclose(ours, np.stack(expected)[rows], rtol=1e-6)


def test_a_frame_holds_the_observation_and_the_action_before(networks):
    frame = Frames(networks, 1, (4,)).of_step
    np.testing.assert_array_equal(frame(jnp.int32(1), jnp.int32(0)), [0, 1, 1, 0])
    np.testing.assert_array_equal(frame(jnp.int32(0), jnp.int32(-1)), [1, 0, 0, 0])


def test_it_clones_continuous_actions(continuous):
    """The action is the observation before."""
    generator = np.random.default_rng(0)
    seen = generator.uniform(-1, 1, (100, LENGTH, 1)).astype(np.float32)
    action = np.concatenate([np.zeros((100, 1, 1), np.float32), seen[:, :-1]], axis=1)
    shown = steps(seen.reshape(-1, 1), action.reshape(-1, 1), [LENGTH] * 100)
    clone = jax.jit(observer(continuous, 2).fit)(jax.random.key(0), shown)
    carry = clone.initial_carry()
    for row in range(4):
        carry, acts = clone(
            carry, shown.observation[row], shown.action[row - 1] if row else -jnp.ones(1)
        )
        assert abs(float(acts.mean[0] - shown.action[row, 0])) < 0.2


def test_seeds_side_by_side_are_those_one_by_one(networks):
    fit = observer(networks, 2).fit
    keys = jax.random.split(jax.random.key(0), 2)
    both = jax.tree.map(lambda *x: jnp.stack(x), tosses(0), tosses(1))
    together, alone = jax.jit(
        lambda *x: (jax.vmap(fit)(*x), jax.lax.map(lambda one: fit(*one), x))
    )(keys, both)
    for seed in range(2):
        ours, expected = (
            np.exp(LOG_PROBS(jax.tree.map(lambda x, seed=seed: x[seed], some), tosses(3)))
            for some in (together, alone)
        )
        np.testing.assert_allclose(ours, expected, atol=1e-3)
