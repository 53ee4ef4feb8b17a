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

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, BFloat16, Float, Int

from ape_jax.core import platform, random
from ape_jax.core.random import NUMBERS_PER_BLOCK
from ape_jax.envs.tables import Words, count_records, moves_code
from ape_jax.envs.world import Moves

EPISODES_PER_WARP = 32
"""Episodes of one program on a GPU: a single warp, in which every thread reads back only what it
wrote itself."""
EPISODES_PER_TILE = 1024
"""Episodes of one program on a TPU, at most."""
VMEM_BYTES = 2**23
"""Memory of one program on a TPU for what grows with the number of its episodes."""
POWERS = 8
"""Rows of bfloat16 that hold 1, R and R²: one, three and three, and one that stays zero."""


def episodes(
    states: Int[Array, "G B"],
    words: Words,
    thresholds: Int[Array, "G S cuts"],
    moves: Moves,
    horizon: int,
    gamma: Float[Array, ""] | float,
) -> tuple[Int[Array, "G steps lanes"], Float[Array, "G steps lanes"]]:
    """Records of all steps, and the returns to go after them, which cannot be differentiated.

    A record is (state · A + action) · 2, and one more if the episode had not ended before. Steps
    after the time limit and episodes beyond B fill up blocks, as if they had ended before.

    Args:
      states: first states.
      words: what each episode's random numbers are made from.
      thresholds: P(action ≤ a) in multiples of 2^-16, without the last action.
      moves: the world.
      horizon: time limit in steps.
      gamma: γ of the returns.
    """
    groups, block = states.shape
    num_states, num_actions = moves.reward.shape
    num_steps = -(-horizon // NUMBERS_PER_BLOCK) * NUMBERS_PER_BLOCK
    fields = _fields(thresholds, moves)
    if platform.forms().one_hot:
        look_up, table, compiler = _by_products, _bytes(fields), None
        width = _tile_width(block, num_steps, num_states)
    else:
        look_up, table = _by_loads, fields.reshape(groups, 1, -1)
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
    gamma = _without_derivative(jnp.asarray(gamma, jnp.float32)).reshape(1, 1)
    return run(gamma, table, *map(padded, (states, *words)))


def _fields(thresholds: Int[Array, "G S cuts"], moves: Moves) -> Int[Array, "G S F"]:
    """All that a step looks up, in one row for each state; of rewards the bits."""
    rewards = jax.lax.bitcast_convert_type(jnp.asarray(moves.reward), jnp.int32)
    of_all = jnp.concatenate([moves_code(moves), rewards], axis=-1)
    of_all = jnp.broadcast_to(of_all, (len(thresholds), *of_all.shape))
    return jnp.concatenate([thresholds, of_all], axis=-1)


def add_up(
    records: Int[Array, "G steps lanes"],
    returns: Float[Array, "G steps lanes"],
    num_states: int,
    num_actions: int,
) -> Float[Array, "3 G S A"]:
    """Sums of 1, R and R² over all live steps, for each state and action."""
    if platform.forms().one_hot:
        return _count_by_products(records, returns, num_states, num_actions)
    records, returns = jnp.swapaxes(records, 0, 1), jnp.swapaxes(returns, 0, 1)
    return count_records(records, returns, num_states, num_actions)


@jax.custom_jvp
def _without_derivative(gamma: Float[Array, ""]) -> Float[Array, ""]:
    return gamma


@_without_derivative.defjvp
def _refuse(primals, tangents):
    raise NotImplementedError(
        "returns by the Pallas kernel cannot be differentiated in gamma; trace with "
        "platform.Forms.pallas=False"
    )


def _tile_width(block: int, num_steps: int, num_states: int) -> int:
    """Episodes of one program on a TPU: a multiple of its 128 lanes."""
    # Two buffers of records and returns, and a one-hot matrix.
    fitting = VMEM_BYTES // (16 * num_steps + 8 * num_states) // 128 * 128
    return min(EPISODES_PER_TILE, max(fitting, 128), -(-block // 128) * 128)


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
            records_ref[row, :] = (states * num_actions + actions) * 2 + live
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
    rows = _product(table_ref[...], hot, 0).astype(jnp.int32)
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


def _product(
    left: BFloat16[Array, "rows n"], right: BFloat16[Array, "..."], axis: int
) -> Float[Array, "rows columns"]:
    """A product of matrices that sums over the given axis of the right one."""
    return jax.lax.dot_general(
        left,
        right,
        (((1,), (axis,)), ((), ())),
        precision=jax.lax.Precision.DEFAULT,  # More is neither needed nor known for bfloat16.
        preferred_element_type=jnp.float32,
    )


def _count_by_products(
    records: Int[Array, "G steps lanes"],
    returns: Float[Array, "G steps lanes"],
    num_states: int,
    num_actions: int,
) -> Float[Array, "3 G S A"]:
    """The sums of ``visits.count``, by a kernel that keeps one-hot matrices on the chip."""
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
        records, returns = records_ref[row, :], returns_ref[row, :]
        pairs = records >> 1
        states, actions = jax.lax.div(pairs, num_actions), jax.lax.rem(pairs, num_actions)
        one = (records & 1).astype(jnp.float32)
        parts = [one, *_thirds(returns), *_thirds(returns**2), jnp.zeros_like(one)]
        powers = jnp.concatenate(parts)
        taken = [jnp.where(actions == action, powers, 0.0) for action in range(num_actions)]
        left = jnp.concatenate(taken).astype(jnp.bfloat16)
        return sums + _product(left, _one_hot(states, sums.shape[1]), 1)

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
