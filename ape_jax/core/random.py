"""Random numbers for many keys at once: the same as those of ``jax.random``, but faster.

On a CPU, ``jax.random`` compiles threefry to a loop over arrays in memory. Here its rounds are
written out, so that XLA fuses them: on two cores this takes a third of the time.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.random import define_prng_impl, threefry_prng_impl
from jaxtyping import Array, Float, Int, Key, UInt, UInt32

from ape_jax.types import PRNGKey

_THREEFRY = "threefry2x32"
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def split(keys: Key[Array, "*N"], num: int) -> Key[Array, "num *N"]:
    """Split a key, or every one of several, into ``num`` new ones, as ``jax.random.split`` does.

    This needs ``jax_threefry_partitionable``, which is on by default.
    """
    if jax.random.key_impl(keys) != _THREEFRY:
        new = jax.vmap(lambda key: jax.random.split(key, num))(keys.reshape(-1))
        return jnp.moveaxis(new, 1, 0).reshape(num, *keys.shape)
    return jax.random.wrap_key_data(jnp.stack(_blocks(keys, num), axis=-1), impl=_THREEFRY)


def uniforms(keys: Key[Array, " N"], num: int) -> Float[Array, "num N"]:
    """Draw ``num`` numbers from [0, 1) with every key, as multiples of 2^-24.

    Each of the two words of a threefry block becomes one number; ``jax.random.bits`` makes one of
    both. Keys of other generators go to ``jax.random.uniform``.
    """
    if jax.random.key_impl(keys) != _THREEFRY:
        return jax.vmap(lambda key: jax.random.uniform(key, (num,)), out_axes=1)(keys)
    words = jnp.stack(_blocks(keys, -(-num // 2)), axis=1).reshape(-1, *keys.shape)[:num]
    return (words >> 8).astype(jnp.float32) * 2.0**-24


def key_words(keys: Key[Array, " N"]) -> tuple[UInt32[Array, " N"], UInt32[Array, " N"]]:
    """Two words for each key, from which ``sixteen_bits`` draws."""
    if jax.random.key_impl(keys) == _THREEFRY:
        data = jax.random.key_data(keys)
    else:
        data = jax.vmap(lambda key: jax.random.bits(key, (2,)))(keys)
    return data[..., 0], data[..., 1]


NUMBERS_PER_BLOCK = 4
"""Numbers of 16 bits in one block of threefry."""


def sixteen_bits(
    words: tuple[UInt32[Array, "*N"], UInt32[Array, "*N"]], blocks: UInt32[Array, "*N"]
) -> tuple[UInt32[Array, "*N"], UInt32[Array, "*N"]]:
    """A block of random bits of every key: two numbers of 16 bits in each of two words.

    Of a word, the lower half comes first. Blocks are counted from 0.
    """
    return _threefry(words, blocks)


def uniforms_of_sixteen_bits(keys: Key[Array, " N"], num: int) -> Float[Array, "num N"]:
    """Draw ``num`` numbers from (0, 1) with every key: odd multiples of 2^-17.

    They need half the random bits of ``uniforms``. A probability that is compared with them is
    rounded to a multiple of 2^-16.
    """
    shape = (-(-num // NUMBERS_PER_BLOCK), *keys.shape)
    words = jax.tree.map(lambda x: jnp.broadcast_to(x, shape), key_words(keys))
    first, second = sixteen_bits(words, jax.lax.broadcasted_iota(jnp.uint32, shape, 0))
    numbers = jnp.stack([first & 0xFFFF, first >> 16, second & 0xFFFF, second >> 16], axis=1)
    return (numbers.reshape(-1, *keys.shape)[:num].astype(jnp.float32) + 0.5) * 2.0**-16


def permutation(key: PRNGKey, size: int) -> Int[Array, " size"]:
    """A random order of the numbers 0, …, size − 1, by sorting single words.

    The upper bits of each word are random, and the lower bits are the number itself. On two cores
    this takes a tenth of the time of ``jax.random.permutation``. Numbers with equal random bits
    keep their order, which does not matter for minibatches.
    """
    mask = jnp.uint32((1 << (size - 1).bit_length()) - 1)
    words = jax.random.bits(written_out(key), (size,)) & ~mask
    return (jnp.sort(words | jnp.arange(size, dtype=jnp.uint32)) & mask).astype(jnp.int32)


def written_out(keys: Key[Array, "*batch"]) -> Key[Array, "*batch"]:
    """The same keys, for a function that calls ``jax.random`` itself, such as an environment.

    It draws the same numbers with them, but from rounds that are written out. Keys of other
    generators stay as they are.
    """
    if jax.random.key_impl(keys) != _THREEFRY:
        return keys
    return jax.random.wrap_key_data(jax.random.key_data(keys), impl=_WRITTEN_OUT)


def _split(key: UInt32[Array, " 2"], shape: tuple[int, ...]) -> UInt32[Array, "*shape 2"]:
    return jnp.stack(_blocks_of(key, shape), axis=-1)


def _bits(
    key: UInt32[Array, " 2"], bit_width: int, shape: tuple[int, ...]
) -> UInt[Array, "*shape"]:
    left, right = _blocks_of(key, shape)
    if bit_width == 64:
        return (left.astype(jnp.uint64) << 32) | right.astype(jnp.uint64)
    return (left ^ right).astype(f"uint{bit_width}")


def _blocks_of(key: UInt32[Array, " 2"], shape: tuple[int, ...]) -> Any:
    words = _blocks(jax.random.wrap_key_data(key, impl=_THREEFRY), math.prod(shape))
    return tuple(x.reshape(shape) for x in words)


_WRITTEN_OUT = define_prng_impl(
    key_shape=(2,),
    seed=threefry_prng_impl.seed,
    split=_split,
    random_bits=_bits,
    fold_in=threefry_prng_impl.fold_in,
    name="threefry2x32 written out",
    tag="two",
)


def _blocks(
    keys: Key[Array, "*N"], num: int
) -> tuple[UInt32[Array, "num *N"], UInt32[Array, "num *N"]]:
    """The blocks 0, …, num − 1 of every key."""
    shape = (num, *keys.shape)
    first, second = jnp.moveaxis(jnp.broadcast_to(jax.random.key_data(keys), (*shape, 2)), -1, 0)
    return _threefry((first, second), jax.lax.broadcasted_iota(jnp.uint32, shape, 0))


def _threefry(
    words: tuple[UInt32[Array, "*N"], UInt32[Array, "*N"]], counters: UInt32[Array, "*N"]
) -> tuple[UInt32[Array, "*N"], UInt32[Array, "*N"]]:
    """Threefry-2x32 with 20 rounds (Salmon et al., 2011) of the counters (0, counter)."""
    first, second = words
    schedule = (first, second, first ^ second ^ _PARITY)
    left, right = first, second + counters
    for injection in range(1, 6):
        for rotation in _ROTATIONS[(injection - 1) % 2]:
            left = left + right
            right = ((right << rotation) | (right >> (32 - rotation))) ^ left
        left = left + schedule[injection % 3]
        right = right + schedule[(injection + 1) % 3] + jnp.uint32(injection)
    return left, right
