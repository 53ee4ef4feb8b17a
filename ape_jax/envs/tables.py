"""Episodes by look-ups in tables, for finite worlds whose moves are certain; only visits are kept.

The episodes are those of ``rollout.ensemble_episodes`` for the same keys. Here a step is two
look-ups, and no step is recorded but by one number. Each platform has its own form of the loop;
``tables_kernel`` is one more, for accelerators.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from ape_jax.core import platform, random
from ape_jax.core.random import NUMBERS_PER_BLOCK
from ape_jax.core.returns import discounted_returns
from ape_jax.core.visits import Visits, count
from ape_jax.envs.step import reset
from ape_jax.envs.world import Moves, World

Words = tuple[UInt32[Array, "..."], UInt32[Array, "..."]]
"""Two words for each episode, from which its random numbers are made."""

LANES_PER_QUEUE = 8
"""Lanes that take episodes from one queue. More balance the work better, and cost more to serve."""
EPISODES_PER_LANE = 2
"""Episodes of a lane, on average. More make shorter vectors and longer loops; where all episodes
reach the time limit, nothing is gained."""
LARGEST_LANE = 2**31
"""A lane's place and the steps left before its limit are one number below this; in worlds that are
too large for it there are no lanes."""


def ensemble_visits(
    expert_keys: Key[Array, "E B"],
    observer_keys: Key[Array, "E B"],
    policies: Float[Array, "P S A"],
    world: World,
    gamma: Float[Array, ""] | float,
) -> tuple[Visits, Visits]:
    """Visits [E, S, A] of the experts and [S, A] of the observer, over one episode for each key.

    Args:
      expert_keys: keys of the experts' episodes.
      observer_keys: keys of the observer's episodes.
      policies: probabilities of every expert's actions, and of the observer's, P = E + 1.
      world: a world whose ``moves`` are known.
      gamma: γ of the returns. With lanes, as on a CPU, they can be differentiated in γ in forward
        mode only.
    """
    moves = world.moves
    assert moves is not None
    num_experts, block = expert_keys.shape
    # Episodes of the observer are the longest, and begin first.
    keys = jnp.concatenate([observer_keys, expert_keys])
    acting = jnp.append(jnp.full(num_experts, num_experts), jnp.arange(num_experts))
    states, words = _start(keys, world)
    thresholds = _thresholds(policies)
    num_places = len(policies) * len(moves.reward)
    if platform.forms().lanes and num_places << world.horizon.bit_length() <= LARGEST_LANE:
        sums = _sums_by_lanes(states, words, acting, thresholds, moves, world.horizon, gamma)
        experts, observer = sums[:, :-1], sums[:, -1]
    else:
        sums = _sums_by_blocks(states, words, thresholds[acting], moves, world.horizon, gamma)
        experts, observer = sums[:, num_experts:], jnp.sum(sums[:, :num_experts], axis=1)

    def averaged(sums, num_episodes) -> Visits:
        counts = sums[0] / num_episodes
        rewards = jnp.broadcast_to(moves.reward, counts.shape)
        return Visits(
            counts=counts,
            returns=sums[1] / num_episodes,
            squares=sums[2] / num_episodes,
            undiscounted=jnp.sum(counts * rewards, axis=(-2, -1)),
        )

    return averaged(experts, block), averaged(observer, num_experts * block)


def _thresholds(policies: Float[Array, "P S A"]) -> Int[Array, "P S cuts"]:
    """P(action ≤ a) in multiples of 2^-16, without the last action."""
    cumulative = jnp.cumsum(policies, axis=-1)
    shares = cumulative[..., :-1] / cumulative[..., -1:]
    return jnp.round(shares * 2.0**16).astype(jnp.int32)


def _start(keys: Key[Array, "G B"], world: World) -> tuple[Int[Array, "G B"], Words]:
    """First states, and what the actions are drawn from: as in ``rollout``."""
    start_keys, action_keys, _ = random.split(keys.reshape(-1), 3)
    states = reset(world, start_keys).observation
    words = random.key_words(action_keys)
    return jax.tree.map(lambda x: x.reshape(keys.shape), (states, words))


def moves_code(moves: Moves) -> Int[Array, "S A"]:
    """The next state times two, and one more where the episode ends there."""
    return jnp.asarray(moves.next_state * 2 + moves.ends, jnp.int32)


def _sums_by_blocks(
    states: Int[Array, "G B"],
    words: Words,
    thresholds: Int[Array, "G S cuts"],
    moves: Moves,
    horizon: int,
    gamma: Float[Array, ""] | float,
) -> Float[Array, "3 G S A"]:
    """Sums of 1, R and R² of all episodes side by side, each from its start to the time limit."""
    if platform.forms().pallas:
        # Imported where it is used, because it takes time and few need it.
        from ape_jax.envs import tables_kernel

        found = tables_kernel.episodes(states, words, thresholds, moves, horizon, gamma)
        return tables_kernel.add_up(*found, *moves.reward.shape)
    records = _records(states, words, thresholds, moves, horizon)
    # Where all steps pay alike, nothing is looked up: a TPU would take the steps one by one.
    alike = np.all(moves.reward == moves.reward[0, 0])
    rewards = jnp.asarray(moves.reward).reshape(-1)
    rewards = rewards[0] if alike else rewards[records >> 1]
    earned = jnp.where(records % 2 == 1, rewards, 0.0)
    returns = discounted_returns(earned, jnp.full_like(earned, gamma))
    return count_records(records, returns, *moves.reward.shape)


def count_records(
    records: Int[Array, "T G B"], returns: Float[Array, "T G B"], num_states: int, num_actions: int
) -> Float[Array, "3 G S A"]:
    """Sums of 1, R and R² over the steps that count, for each state and action."""
    pairs, live = records >> 1, records % 2 == 1
    states, actions = pairs // num_actions, pairs % num_actions
    return jnp.stack(count(states, actions, returns, live, num_states, num_actions))


def _records(
    states: Int[Array, "G B"],
    words: Words,
    thresholds: Int[Array, "G S cuts"],
    moves: Moves,
    horizon: int,
) -> Int[Array, "T G B"]:
    """The number (state · A + action) · 2 of each step; one more before the episode has ended."""
    num_actions = moves.reward.shape[1]
    one_hot = platform.forms().one_hot
    code = moves_code(moves)
    first = jnp.arange(len(states), dtype=jnp.int32)[:, None] * len(code)
    columns = thresholds.reshape(-1, num_actions - 1).T
    if one_hot:
        looked_up = jnp.concatenate(
            [thresholds, jnp.broadcast_to(code, (len(states), *code.shape))], axis=-1
        )

    def step(lane, number):
        states, live = lane
        if one_hot:
            rows = _rows_by_products(looked_up, states)
            actions = _first_above(rows[..., : num_actions - 1], number)
            chosen = jax.nn.one_hot(actions, num_actions, dtype=jnp.int32)
            after = jnp.sum(chosen * rows[..., num_actions - 1 :], axis=-1)
        else:
            # Not one look-up of rows and a sum over them, because a GPU starts a kernel for each.
            not_above = [column[first + states] <= number for column in columns]
            actions = sum(x.astype(jnp.int32) for x in not_above)
            after = code.reshape(-1)[states * num_actions + actions]
        record = (states * num_actions + actions) * 2 + live
        return (jnp.where(live, after >> 1, states), live & (after % 2 == 0)), record

    def several_steps(lane, bits):
        """As many steps as there are numbers, written out, because each is a kernel on a GPU."""
        records = []
        for words in zip(*bits, strict=True):
            for word in words:
                for number in (word & 0xFFFF, word >> 16):
                    lane, record = step(lane, number.astype(jnp.int32))
                    records.append(record)
        return lane, jnp.stack(records)

    at_once = -(-platform.forms().unroll // NUMBERS_PER_BLOCK)
    shape = (-(-horizon // (at_once * NUMBERS_PER_BLOCK)), at_once, *states.shape)
    counters = jnp.arange(shape[0] * at_once, dtype=jnp.uint32).reshape(*shape[:2], 1, 1)
    counters = jnp.broadcast_to(counters, shape)
    bits = random.sixteen_bits(jax.tree.map(lambda x: jnp.broadcast_to(x, shape), words), counters)
    start = (states, jnp.ones(states.shape, bool))
    _, records = jax.lax.scan(several_steps, start, bits)
    return records.reshape(-1, *states.shape)[:horizon]


def _first_above(rows: Int[Array, "... cuts"], number: Int[Array, "..."]) -> Int[Array, "..."]:
    """The action that a number in [0, 2^16) draws: how many thresholds are not above it."""
    return jnp.sum(rows <= number[..., None], axis=-1, dtype=jnp.int32)


def _rows_by_products(
    tables: Int[Array, "G S F"], states: Int[Array, "G B"]
) -> Int[Array, "G B F"]:
    """Rows of tables of numbers up to 2^16, by products of their upper and lower eight bits.

    bfloat16 holds whole numbers up to 256 exactly.
    """
    hot = jax.nn.one_hot(states, tables.shape[1], dtype=jnp.bfloat16)
    halves = jnp.concatenate([tables >> 8, tables & 0xFF], axis=-1).astype(jnp.bfloat16)
    rows = jnp.einsum("gbs,gsf->gbf", hot, halves, preferred_element_type=jnp.float32)
    upper, lower = jnp.split(rows.astype(jnp.int32), 2, axis=-1)
    return upper * 256 + lower


def _sums_by_lanes(
    states: Int[Array, "G B"],
    words: Words,
    acting: Int[Array, " G"],
    thresholds: Int[Array, "P S cuts"],
    moves: Moves,
    horizon: int,
    gamma: Float[Array, ""] | float,
) -> Float[Array, "3 P S A"]:
    """Sums of 1, R and R², with fewer lanes than episodes.

    A lane in which an episode has ended takes the next one of its queue, every four steps. The loop
    ends with the last episode. The results are those of ``_sums_by_blocks`` up to the rounding of
    sums, because the random numbers belong to the episodes.
    """
    num_policies, num_states, num_actions = len(thresholds), *moves.reward.shape
    num_pairs = num_policies * num_states * num_actions
    first = jnp.arange(num_policies, dtype=jnp.int32)[:, None, None] * num_states * 2
    after = (moves_code(moves)[None] + first).reshape(-1)
    rewards = jnp.tile(jnp.asarray(moves.reward).reshape(-1), num_policies)
    # Of a lane that has nothing left to do, the pair is one too many, and pays nothing.
    rewards = jnp.append(rewards, 0.0)
    thresholds = thresholds.reshape(-1, num_actions - 1)
    episodes = _Lanes(
        place=(acting[:, None] * num_states + states).reshape(-1).astype(jnp.int32),
        words=jax.tree.map(lambda x: x.reshape(-1), words),
        left=jnp.full(states.size, horizon, jnp.int32),
    )

    bits_of_left = horizon.bit_length()

    def step(lane, number):
        # One number a lane is one array for XLA to copy at every step.
        place, left = lane >> bits_of_left, lane & (2**bits_of_left - 1)
        pair = place * num_actions + _first_above(thresholds[place], number)
        to = after[pair]
        ends = (to & 1) | (left == 1)
        record = jnp.where(left > 0, pair * 2 + ends, num_pairs * 2)
        left = jnp.maximum(left - 1, 0) * (1 - (to & 1))
        return (to >> 1 << bits_of_left) + left, record

    def draw(lanes: _Lanes) -> Words:
        blocks = ((horizon - lanes.left) // NUMBERS_PER_BLOCK).astype(jnp.uint32)
        return random.sixteen_bits(lanes.words, blocks)

    def advance(lanes: _Lanes, bits: Words) -> tuple[_Lanes, Int[Array, "4 L"]]:
        numbers = jnp.stack([x for word in bits for x in (word & 0xFFFF, word >> 16)])
        lane = (lanes.place << bits_of_left) + lanes.left
        lane, records = jax.lax.scan(step, lane, numbers.astype(jnp.int32))
        place, left = lane >> bits_of_left, lane & (2**bits_of_left - 1)
        return lanes._replace(place=place, left=left), records

    records, num_blocks = _serve(episodes, draw, advance, -(-horizon // NUMBERS_PER_BLOCK))

    def backward(carry, record):
        later, sums = carry
        pair = record >> 1
        returns = rewards[pair] + gamma * jnp.where(record & 1, 0.0, later)
        powers = jnp.stack([jnp.ones_like(returns), returns, returns**2], axis=-1)
        return (returns, sums.at[pair].add(powers, mode="promise_in_bounds")), None

    def backward_block(carry):
        block, *sums = carry
        block = block - 1
        sums, _ = jax.lax.scan(backward, tuple(sums), records[block], reverse=True)
        return block, *sums

    start = (num_blocks, jnp.zeros(records.shape[-1]), jnp.zeros((num_pairs + 1, 3)))
    _, _, sums = jax.lax.while_loop(lambda carry: carry[0] > 0, backward_block, start)
    return jnp.moveaxis(sums[:-1].reshape(num_policies, num_states, num_actions, 3), -1, 0)


class _Lanes(NamedTuple):
    """Episodes, or the lanes in which they run."""

    place: Int[Array, " L"]
    """The state, among the states of all policies one after another: it says who acts as well."""
    words: Words
    left: Int[Array, " L"]
    """Steps left before the time limit; zero where the episode has ended."""


def _serve(episodes: _Lanes, draw, advance, blocks_per_episode: int):
    """Run all episodes, and return their records [M, 4, L] and how many blocks M are used.

    Lanes and episodes are dealt out to queues of equal length, and the lanes of a queue take its
    episodes in order.
    """
    num_episodes = len(episodes.left)
    num_queues = max(1, num_episodes // (LANES_PER_QUEUE * EPISODES_PER_LANE))
    length = -(-num_episodes // num_queues)
    lanes_per_queue = -(-length // EPISODES_PER_LANE)
    num_lanes = lanes_per_queue * num_queues
    queue = jnp.tile(jnp.arange(num_queues, dtype=jnp.int32), lanes_per_queue)
    # Episode j of a queue with l lanes begins at the latest after ⌊j / l⌋ time limits: all before
    # the last multiple of l have ended by then, and fewer than l others can keep lanes busy.
    most = blocks_per_episode * -(-length // lanes_per_queue)

    def serve(carry):
        lanes, bits, waiting, records, block = carry
        lanes, record = advance(lanes, bits)
        records = jax.lax.dynamic_update_index_in_dim(records, record, block, 0)
        free = (lanes.left == 0).reshape(lanes_per_queue, num_queues).astype(jnp.int32)
        taken, before = waiting, []
        for lane in free:
            before.append(taken)
            taken = taken + lane
        number = jnp.concatenate(before) * num_queues + queue
        fresh = (lanes.left == 0) & (number < num_episodes)
        number = jnp.minimum(number, num_episodes - 1)
        lanes = jax.tree.map(lambda x, y: jnp.where(fresh, y[number], x), lanes, episodes)
        # Random bits of the next block are carried: in the loop over its steps, XLA would compute
        # them again for every step.
        return lanes, draw(lanes), jnp.minimum(taken, length), records, block + 1

    lanes = jax.tree.map(lambda x: x[:num_lanes], episodes)
    waiting = jnp.full(num_queues, lanes_per_queue, jnp.int32)
    records = jnp.zeros((most, NUMBERS_PER_BLOCK, num_lanes), jnp.int32)
    carry = (lanes, draw(lanes), waiting, records, jnp.int32(0))
    _, _, _, records, num_blocks = jax.lax.while_loop(
        lambda carry: _any_of_all(carry[0].left > 0), serve, carry
    )
    return records, num_blocks


@custom_vmap
def _any_of_all(flags: Bool[Array, "..."]) -> Bool[Array, ""]:
    """Whether any flag is set, in this run or in one beside it under ``vmap``.

    Runs side by side then share one loop, and none of them has to be held back: a lane without an
    episode changes nothing.
    """
    return jnp.any(flags)


@_any_of_all.def_vmap
def _any_of_all_runs(axis_size, in_batched, flags):
    return _any_of_all(flags), False
