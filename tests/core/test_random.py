import jax
import numpy as np
import pytest

from ape_jax.core import random


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
@pytest.mark.parametrize("num", [1, 4])
def test_split_gives_the_keys_of_jax(impl, num):
    keys = jax.random.split(jax.random.key(3, impl=impl), 7)
    ours = random.split(keys, num)
    assert ours.shape == (num, 7)
    for index, key in enumerate(keys):
        expected = jax.random.key_data(jax.random.split(key, num))
        np.testing.assert_array_equal(jax.random.key_data(ours[:, index]), expected)


def test_generators_whose_keys_repeat_words_give_numbers_that_do_not():
    numbers = random.uniforms(jax.random.split(jax.random.key(0, impl="rbg"), 2), 64)
    assert numbers.shape == (64, 2)
    assert len(np.unique(np.asarray(numbers))) == 128


def test_uniform_numbers_are_uniform_independent_and_those_of_their_key():
    """Each lane, each position and both words of a block: mean, variance, lag and range."""
    keys = jax.random.split(jax.random.key(5), 4096)
    numbers = np.asarray(random.uniforms(keys, 101), np.float64).T
    assert numbers.shape == (4096, 101)
    assert numbers.min() >= 0.0
    assert numbers.max() < 1.0
    error = np.sqrt(1 / 12 / 4096)
    assert np.abs(numbers.mean(axis=0) - 0.5).max() < 4.5 * error
    assert np.abs(numbers.mean() - 0.5) < 4 * error / np.sqrt(101)
    shares = np.bincount((numbers * 64).astype(int).ravel(), minlength=64) / numbers.size
    assert np.abs(shares * 64 - 1).max() < 4.5 * 8 / np.sqrt(numbers.size)
    centred = (numbers - 0.5) * np.sqrt(12)
    for lag in (1, 2, 3):
        assert abs((centred[:, lag:] * centred[:, :-lag]).mean()) < 4 / np.sqrt(numbers.size)
    np.testing.assert_array_equal(numbers[7], random.uniforms(keys[7:8], 101)[:, 0])


@pytest.mark.parametrize("size", [1, 2, 100, 4096])
def test_a_permutation_has_every_number_once(size):
    order = random.permutation(jax.random.key(1), size)
    np.testing.assert_array_equal(np.sort(order), np.arange(size))


def test_a_permutation_puts_every_number_everywhere():
    orders = jax.vmap(lambda key: random.permutation(key, 4))(
        jax.random.split(jax.random.key(2), 8000)
    )
    shares = np.stack([(np.asarray(orders) == number).mean(axis=0) for number in range(4)])
    np.testing.assert_allclose(shares, 0.25, atol=0.02)


DRAWS = {
    "uniform": lambda key: jax.random.uniform(key, (3,)),
    "bits": lambda key: jax.random.bits(key, (5,), "uint8"),
    "permutation": lambda key: jax.random.permutation(key, 6),
    "split": lambda key: jax.random.randint(jax.random.split(key, 3)[1], (2, 2), 0, 100),
    "fold in": lambda key: jax.random.normal(jax.random.fold_in(key, 4)),
}


@pytest.mark.parametrize("name", DRAWS)
def test_keys_that_are_written_out_draw_the_same_numbers(name):
    keys = jax.random.split(jax.random.key(2), (2, 2))
    draw = jax.vmap(jax.vmap(DRAWS[name]))
    np.testing.assert_array_equal(draw(random.written_out(keys)), draw(keys))


def test_keys_of_another_generator_are_not_written_out():
    key = jax.random.key(2, impl="rbg")
    assert random.written_out(key) is key


def test_one_key_splits_like_that_of_jax():
    key = jax.random.key(6)
    ours = jax.random.key_data(random.split(key, 3))
    np.testing.assert_array_equal(ours, jax.random.key_data(jax.random.split(key, 3)))
