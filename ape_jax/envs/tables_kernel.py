"""Episodes in a finite world as one kernel, in Pallas.

The states of episodes stay in registers for all their steps, and their random numbers are made
there. The kernels have been compiled for GPUs and TPUs, but have only run in Pallas's interpreter,
on CPUs: no platform uses them unless ``platform.Forms.pallas`` is set by hand.

On a GPU each thread runs one episode, and loads from the tables. On a TPU a program runs episodes
side by side, and looks up and counts by products with one-hot matrices of bfloat16. They are exact,
because numbers are split into parts of eight bits.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, BFloat16, Bool, Float, Int, UInt32

from ape_jax.core import platform, random
from ape_jax.core.random import NUMBERS_PER_BLOCK
from ape_jax.core.visits import count

EPISODES_PER_WARP = 32
"""Episodes of one program on a GPU: a single warp, in which every thread reads back only what it
wrote itself."""
EPISODES_PER_TILE = 1024
"""Episodes of one program on a TPU, at most."""
VMEM_BYTES = 2**23
"""Memory of one program on a TPU for what grows with the number of its episodes."""
POWERS = 8
"""Rows of bfloat16 that hold 1, R and R²: one, three and three, and one that stays zero."""


class Tables(NamedTuple):
    """What a step looks up."""

    thresholds: Int[Array, "G S cuts"]
    """P(action ≤ a) in multiples of 2^-16, without the last action."""
    moves: Int[Array, "S A"]
    """The next state times two, and one more where the episode ends there."""
    rewards: Float[Array, "S A"]

    def fields(self) -> Int[Array, "G S F"]:
        """One row for each state: thresholds, moves, and the bits of rewards."""
        bits = jax.lax.bitcast_convert_type(self.rewards, jnp.int32)
        of_state = jnp.concatenate([self.moves, bits], axis=-1)
        of_state = jnp.broadcast_to(of_state, (len(self.thresholds), *of_state.shape))
        return jnp.concatenate([self.thresholds, of_state], axis=-1)


def episodes(
    states: Int[Array, "G B"],
    words: tuple[UInt32[Array, "G B"], UInt32[Array, "G B"]],
    tables: Tables,
    horizon: int,
    gamma: Float[Array, ""] | float,
) -> tuple[Int[Array, "G steps lanes"], Float[Array, "G steps lanes"]]:
    """Records of all steps, which ``decode`` reads, and the returns to go after them.

    Steps after the time limit and episodes beyond B fill up blocks. They are not live, and their
    returns are zero. Returns cannot be differentiated.

    Args:
      states: first states.
      words: what each episode's random numbers are made from.
      tables: the actions that each group draws, and what these do.
      horizon: time limit in steps.
      gamma: γ of the returns.
    """
    groups, block = states.shape
    num_states, num_actions = tables.moves.shape
    num_steps = -(-horizon // NUMBERS_PER_BLOCK) * NUMBERS_PER_BLOCK
    if platform.forms().one_hot:
        look_up, table, compiler = _by_products, _bytes(tables.fields()), None
        width = _tile_width(block, num_steps, num_states)
    else:
        look_up, table = _by_loads, tables.fields().reshape(groups, 1, -1)
        compiler = triton.CompilerParams(num_warps=1)
        width = EPISODES_PER_WARP
    num_tiles = -(-block // width)

    def padded(x):
        return jnp.pad(x, ((0, 0), (0, num_tiles * width - block)))[:, None]

    def of_tile(rows):
        return pl.BlockSpec((None, rows, width), lambda group, tile: (group, 0, tile))

    run = _call(
        partial(_run, look_up=look_up, block=block, horizon=horizon, num_actions=num_actions),
        out_shape=[
            jax.ShapeDtypeStruct((groups, num_steps, num_tiles * width), dtype)
            for dtype in (jnp.int32, jnp.float32)
        ],
        grid=(groups, num_tiles),
        in_specs=[
            pl.BlockSpec((1, 1), lambda group, tile: (0, 0)),
            pl.BlockSpec((None, *table.shape[1:]), lambda group, tile: (group, 0, 0)),
            *[of_tile(1)] * 3,
        ],
        out_specs=[of_tile(num_steps)] * 2,
        compiler_params=compiler,
    )
    return run(jnp.full((1, 1), gamma, jnp.float32), table, *map(padded, (states, *words)))


def decode(
    records: Int[Array, "..."], num_actions: int
) -> tuple[Int[Array, "..."], Int[Array, "..."], Bool[Array, "..."]]:
    """States, actions, and whether the episode had not ended before the step."""
    bits = _action_bits(num_actions)
    return records >> bits + 1, (records >> 1) & ((1 << bits) - 1), records & 1 == 1


def add_up(
    records: Int[Array, "G steps lanes"],
    returns: Float[Array, "G steps lanes"],
    num_states: int,
    num_actions: int,
) -> Float[Array, "3 G S A"]:
    """Sums of 1, R and R² over all live steps, for each state and action."""
    if platform.forms().one_hot:
        return _count_by_products(records, returns, num_states, num_actions)
    steps = (*decode(records, num_actions), returns)
    states, actions, live, returns = (jnp.swapaxes(x, 0, 1) for x in steps)
    return jnp.stack(count(states, actions, returns, live, num_states, num_actions))


def _tile_width(block: int, num_steps: int, num_states: int) -> int:
    """Episodes of one program on a TPU: a multiple of its 128 lanes."""
    # Two buffers of records and returns, and a one-hot matrix.
    fitting = VMEM_BYTES // (16 * num_steps + 8 * num_states) // 128 * 128
    return min(EPISODES_PER_TILE, max(fitting, 128), -(-block // 128) * 128)


def _action_bits(num_actions: int) -> int:
    return (num_actions - 1).bit_length()


def _call(kernel: Callable, **options) -> Callable:
    """The kernel as a function, which Pallas interprets where it runs on a CPU."""

    def run(*arguments, interpret):
        return pl.pallas_call(kernel, interpret=interpret, **options)(*arguments)

    def call(*arguments):
        on_cpu, otherwise = partial(run, interpret=True), partial(run, interpret=False)
        return jax.lax.platform_dependent(*arguments, cpu=on_cpu, default=otherwise)

    return call


def _run(
    gamma_ref,
    table_ref,
    states_ref,
    first_ref,
    second_ref,
    records_ref,
    returns_ref,
    *,
    look_up,
    block,
    horizon,
    num_actions,
):
    """Run the episodes of one tile to the time limit; then add up their returns backwards."""
    words, states = (first_ref[...], second_ref[...]), states_ref[...]
    width = states.shape[1]
    lanes = pl.program_id(1) * width + jax.lax.broadcasted_iota(jnp.int32, states.shape, 1)
    bits = _action_bits(num_actions)

    def four_steps(place, carry):
        states, live = carry
        counters = jnp.full(states.shape, place, jnp.int32).astype(jnp.uint32)
        numbers = random.sixteen_bits(words, counters)
        for index in range(NUMBERS_PER_BLOCK):
            step = place * NUMBERS_PER_BLOCK + index
            number = ((numbers[index // 2] >> 16 * (index % 2)) & 0xFFFF).astype(jnp.int32)
            actions, after, rewards = look_up(table_ref, states, number, num_actions)
            live = jnp.where(step < horizon, live, 0)
            row = pl.ds(step, 1)
            records_ref[row, :] = (states << bits + 1) | (actions << 1) | live
            returns_ref[row, :] = jnp.where(live == 1, rewards, 0.0)
            states = jnp.where(live == 1, after >> 1, states)
            live = live & (1 - (after & 1))
        return states, live

    live = (lanes < block).astype(jnp.int32)
    jax.lax.fori_loop(0, -(-horizon // NUMBERS_PER_BLOCK), four_steps, (states, live))
    gamma = gamma_ref[...]

    def backward(index, later):
        row = pl.ds(horizon - 1 - index, 1)
        returns = returns_ref[row, :] + gamma * later
        returns_ref[row, :] = returns
        return returns

    jax.lax.fori_loop(0, horizon, backward, jnp.zeros((1, width)))


def _by_loads(table_ref, states, number, num_actions):
    """Actions, moves and rewards by loads from memory."""
    cuts = num_actions - 1
    zero = jnp.zeros_like(states)
    first = states * (cuts + 2 * num_actions)
    actions = zero
    for cut in range(cuts):
        actions += (table_ref[zero, first + cut] <= number).astype(jnp.int32)
    move = first + cuts + actions
    rewards = jax.lax.bitcast_convert_type(table_ref[zero, move + num_actions], jnp.float32)
    return actions, table_ref[zero, move], rewards


def _bytes(fields: Int[Array, "G S F"]) -> BFloat16[Array, "G rows S"]:
    """The lowest bytes of all fields, then the next ones; four times a multiple of eight rows."""
    fields = jnp.pad(fields, ((0, 0), (0, 0), (0, -fields.shape[-1] % 8)))
    parts = [(fields >> shift) & 0xFF for shift in (0, 8, 16, 24)]
    return jnp.swapaxes(jnp.concatenate(parts, axis=-1), 1, 2).astype(jnp.bfloat16)


def _by_products(table_ref, states, number, num_actions):
    """Actions, moves and rewards by products with one-hot columns."""
    hot = _one_hot(states, table_ref.shape[1])
    rows = jnp.dot(table_ref[...], hot, preferred_element_type=jnp.float32).astype(jnp.int32)
    parts = jnp.split(rows, 4)
    fields = parts[0] | (parts[1] << 8) | (parts[2] << 16) | (parts[3] << 24)
    field = jax.lax.broadcasted_iota(jnp.int32, fields.shape, 0)

    def sum_where(chosen, values):
        return jnp.sum(jnp.where(chosen, values, 0), axis=0, keepdims=True)

    cuts = num_actions - 1
    actions = sum_where((field < cuts) & (fields <= number), 1)
    after = sum_where(field == cuts + actions, fields)
    rewards = sum_where(field == cuts + num_actions + actions, fields)
    return actions, after, jax.lax.bitcast_convert_type(rewards, jnp.float32)


def _one_hot(places: Int[Array, "1 lanes"], num_rows: int) -> BFloat16[Array, "rows lanes"]:
    rows = jax.lax.broadcasted_iota(jnp.int32, (num_rows, places.shape[1]), 0)
    return (rows == places).astype(jnp.float32).astype(jnp.bfloat16)


def _count_by_products(
    records: Int[Array, "G steps lanes"],
    returns: Float[Array, "G steps lanes"],
    num_states: int,
    num_actions: int,
) -> Float[Array, "3 G S A"]:
    """What ``visits.count`` counts, by a kernel that keeps one-hot matrices on the chip."""
    groups, num_steps, lanes = records.shape
    width = _tile_width(lanes, num_steps, num_states)
    tile = pl.BlockSpec((None, num_steps, width), lambda group, tile: (group, 0, tile))
    shape = (num_actions * POWERS, num_states)
    found = _call(
        partial(_count, num_actions=num_actions),
        out_shape=jax.ShapeDtypeStruct((groups, *shape), jnp.float32),
        grid=(groups, lanes // width),
        in_specs=[tile, tile],
        out_specs=pl.BlockSpec((None, *shape), lambda group, tile: (group, 0, 0)),
    )(records, returns)
    found = jnp.moveaxis(found.reshape(groups, num_actions, POWERS, num_states), (2, 3), (0, 2))
    return jnp.stack([found[0], jnp.sum(found[1:4], axis=0), jnp.sum(found[4:7], axis=0)])


def _count(records_ref, returns_ref, sums_ref, *, num_actions):
    """Add the sums of one tile to those of its group."""

    @pl.when(pl.program_id(1) == 0)
    def _():
        sums_ref[...] = jnp.zeros_like(sums_ref)

    def step(index, sums):
        row = pl.ds(index, 1)
        returns = returns_ref[row, :]
        states, actions, live = decode(records_ref[row, :], num_actions)
        one = live.astype(jnp.float32)
        rows = [one, *_thirds(returns), *_thirds(returns**2), jnp.zeros_like(one)]
        powers = jnp.concatenate(rows)
        taken = [jnp.where(actions == action, powers, 0.0) for action in range(num_actions)]
        return sums + jax.lax.dot_general(
            jnp.concatenate(taken).astype(jnp.bfloat16),
            _one_hot(states, sums.shape[1]),
            (((1,), (1,)), ((), ())),
            preferred_element_type=jnp.float32,
        )

    start = jnp.zeros(sums_ref.shape)
    sums_ref[...] += jax.lax.fori_loop(0, records_ref.shape[0], step, start)


def _thirds(values: Float[Array, "..."]) -> list[Float[Array, "..."]]:
    """Three numbers that bfloat16 holds exactly, and that add up to the value."""
    parts = []
    for _ in range(3):
        upper = jax.lax.bitcast_convert_type(values, jnp.int32) & -(1 << 16)
        parts.append(jax.lax.bitcast_convert_type(upper, jnp.float32))
        values = values - parts[-1]
    return parts
