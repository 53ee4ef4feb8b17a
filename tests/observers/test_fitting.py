import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.observers import fitting


def steps(lengths):
    episode = np.repeat(np.arange(len(lengths)), lengths)
    integers, flags = jnp.zeros(len(episode), int), jnp.zeros(len(episode), bool)
    rewards = jnp.zeros(len(episode))
    return Demonstrations(integers, integers, rewards, flags, flags, jnp.asarray(episode))


def test_every_tenth_episode_is_held_out_whole():
    kept = np.asarray(fitting.held_out(steps([2] * 40)))
    assert kept.mean() == 0.1
    np.testing.assert_array_equal(kept[::2], kept[1::2])


@pytest.mark.parametrize("num_episodes", [1, 5])
def test_few_episodes_serve_both_parts(num_episodes):
    demonstrations = steps([3] * num_episodes)
    assert jnp.all(fitting.split(demonstrations)[0] == 1)
    assert jnp.all(fitting.split(demonstrations)[1] == 1)


def test_minimize_keeps_the_parameters_that_were_best_on_held_out_steps():
    """The loss pulls past the held-out optimum at 1; the best look is kept, not the last."""

    def loss(x, key):
        return jnp.square(x - 3.0)

    def held_out_loss(x):
        return jnp.square(x - 1.0)

    training = fitting.Training(num_updates=400, learning_rate=0.05)
    best = training.minimize(jax.random.key(0), jnp.float32(0.0), loss, held_out_loss)
    assert float(best) == pytest.approx(1.0, abs=0.35)


def test_minimize_returns_the_start_where_nothing_is_better():
    start = jnp.float32(0.0)
    training = fitting.Training(num_updates=40, learning_rate=0.1)
    best = training.minimize(jax.random.key(0), start, lambda x, key: -x, jnp.abs)
    assert float(best) == 0.0


def test_drawing_keeps_to_the_steps_that_carry_weight():
    weights = jnp.zeros(10_000).at[jnp.array([3, 9_998])].set(jnp.array([1.0, 3.0]))
    rows = np.asarray(fitting.draw(jax.random.key(0), weights, 4_000))
    assert set(rows) == {3, 9_998}
    assert (rows == 9_998).mean() == pytest.approx(0.75, abs=0.03)
