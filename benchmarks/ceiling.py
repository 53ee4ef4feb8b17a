"""The speed of training compared with that of its environments alone, and where the rest goes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ape_jax.algorithms import pg, pg_loss
from ape_jax.algorithms.common import expert_log_weights
from ape_jax.algorithms.task import make_task
from ape_jax.config import PGConfig, PGHypers, TrainConfig
from ape_jax.core import random
from ape_jax.core.distributions import CumulativeCategorical
from ape_jax.envs.world import World
from ape_jax.types import Params
from benchmarks import common

PARTS = ("rollout", "random numbers", "loss and gradient", "optimiser")
COLUMNS = {
    "head": "head",
    "B": "envs_per_expert",
    "live steps / s": "live_steps_per_second",
    "ceiling": "ceiling_live_steps_per_second",
    "share": "share_of_ceiling",
    "share of the environment's own step": "share_of_environment",
    "share, with random numbers": "share_with_random_numbers",
    "update ms": "update_milliseconds",
    **{part: f"{part.replace(' ', '_')}_milliseconds" for part in PARTS},
}


def lengths_by_steps(
    tables: Float[Array, "P S A"],
    actors: Int[Array, " N"],
    start: tuple[Int[Array, " N"], Any],
    uniforms: Float[Array, "T N"],
    world: World,
) -> Int[Array, " N"]:
    """Lengths of single episodes, by the environment's own step, in the loop of ``rollout``.

    Nothing is recorded, and random numbers come from outside. An episode that has ended continues,
    and its further steps do not count.

    Args:
      tables: P(action ≤ a) of every policy in every state.
      actors: the policy that acts in each episode.
      start: observations and states.
      uniforms: numbers from [0, 1) that decide the actions.
      world: a world with finite observations whose steps need no random numbers.
    """
    unused = jax.random.key(0)

    def step(carry, uniforms):
        (observations, states), mask, length = carry
        policies = CumulativeCategorical(tables[actors, observations])
        actions = jax.vmap(CumulativeCategorical.sample)(policies, uniforms[:, None])
        observations, states, _, terminated, _ = jax.vmap(
            world.env.step_env, in_axes=(None, 0, 0, None)
        )(unused, states, actions, world.params)
        return ((observations, states), mask & ~terminated, length + mask), None

    carry = (start, jnp.ones(actors.shape, bool), jnp.zeros(actors.shape, jnp.int32))
    (_, _, length), _ = jax.lax.scan(step, carry, uniforms)
    return length


def lengths_by_look_ups(
    tables: Float[Array, "P S A"],
    actors: Int[Array, " N"],
    start: tuple[Int[Array, " N"], Any],
    uniforms: Float[Array, "T N"],
    world: World,
) -> Int[Array, " N"]:
    """The same lengths by two look-ups a step, in tables of all policies one after another.

    This is the fastest loop that we know; lanes that take the next episode are no faster in it.
    """
    moves, num_actions = world.moves, tables.shape[-1]
    thresholds = tables[..., :-1].reshape(-1, num_actions - 1)
    first = jnp.arange(len(tables), dtype=jnp.int32)[:, None, None] * tables.shape[1]
    after = ((first + moves.next_state[None]) * 2 + moves.ends[None]).reshape(-1)

    def step(carry, uniforms):
        code, length = carry
        place, ended = code >> 1, code & 1
        not_above = thresholds[place] <= uniforms[:, None]
        to = after[place * num_actions + jnp.sum(not_above, axis=-1, dtype=jnp.int32)]
        return (jnp.where(ended, code, to), length + 1 - ended), None

    code = ((actors * tables.shape[1] + start[0]) * 2).astype(jnp.int32)
    (_, length), _ = jax.lax.scan(step, (code, jnp.zeros_like(code)), uniforms)
    return length


def tables_of(networks, heads, log_weights) -> Float[Array, "P S A"]:
    """P(action ≤ a) in every state, of each expert and then of the observer."""
    states = jnp.arange(networks.num_states)
    log_probs = jax.vmap(networks.expert_log_probs, (None, 0), 1)(heads, states)
    clone = jax.nn.logsumexp(log_probs + log_weights[:, None, None], axis=0)
    return jnp.cumsum(jnp.exp(jnp.concatenate([log_probs, clone[None]])), axis=-1)


class Stepping:
    """Steps the environments of experts and observer as training does, without learning."""

    CHUNK = 10
    """Number of updates whose environment steps one program makes; each begins with new starts."""

    def __init__(self, config: TrainConfig, heads: Params, lengths: Callable = lengths_by_look_ups):
        """Draw starts and random numbers.

        Args:
          config: static settings.
          heads: of the experts that act; the observer is their uniform mixture.
          lengths: the loop.
        """
        task = make_task(config)
        key_starts, key_uniforms = jax.random.split(jax.random.key(0))
        num_experts, block = config.num_experts, config.envs_per_expert
        actors = jnp.repeat(jnp.arange(num_experts), block)
        actors = jnp.append(actors, jnp.full(num_experts * block, num_experts))
        weights = jnp.full(num_experts, -jnp.log(num_experts))
        tables = jax.jit(tables_of, static_argnums=0)(task.networks, heads, weights)
        keys = jax.random.split(key_starts, (self.CHUNK, len(actors)))
        reset = jax.vmap(jax.vmap(task.world.env.reset_env, (0, None)), (0, None))
        starts = jax.jit(reset)(keys, task.world.params)
        uniforms = jax.random.uniform(key_uniforms, (task.world.horizon, len(actors)))

        @jax.jit
        def run(tables, starts, uniforms):
            def one(total, start):
                return total + jnp.sum(lengths(tables, actors, start, uniforms, task.world)), None

            return jax.lax.scan(one, jnp.int32(0), starts)[0]

        self.work = common.repeated(run, tables, starts, uniforms)
        self.steps = self.CHUNK * uniforms.size
        """Steps of one piece of work, with those that pad episodes to the time limit."""
        self.live_steps = int(run(tables, starts, uniforms))
        """Steps of one piece of work before the ends of the episodes."""


def steps_an_update(config: TrainConfig) -> int:
    """Environment steps that one update simulates, of experts and observer."""
    task = make_task(config)
    return 2 * config.num_experts * config.envs_per_expert * task.world.horizon


def parts(config: TrainConfig, state: pg.PGState) -> dict[str, common.Contestant]:
    """The parts of an update from a state, each jitted alone.

    The rollout includes its random numbers, and ends with its visits.

    ``raw bits`` draws as many numbers as there are steps from one key, which is the fastest way.
    """
    task, hypers = make_task(config), PGHypers()
    networks = task.networks
    keys = tuple(jax.random.split(jax.random.key(1)))

    def log_weights(params):
        return expert_log_weights(task, params)

    @jax.jit
    def collect(params, keys):
        return pg.collect_batch(task, params, log_weights(params), hypers, keys)

    @jax.jit
    def draw(keys):
        both = jnp.concatenate([pg.episode_keys(x, config, None).reshape(-1) for x in keys])
        start_keys, action_keys, _ = jax.lax.optimization_barrier(random.split(both, 3))
        start = jax.vmap(task.world.env.reset_env, (0, None))(start_keys, task.world.params)
        shape = (-(-task.world.horizon // random.NUMBERS_PER_BLOCK), len(both))
        words = jax.tree.map(lambda x: jnp.broadcast_to(x, shape), random.key_words(action_keys))
        return start, random.sixteen_bits(words, jax.lax.broadcasted_iota(jnp.uint32, shape, 0))

    @jax.jit
    def raw_bits(key):
        return jax.random.bits(key, (steps_an_update(config),))

    @jax.jit
    def gradient(params, experts, observer):
        arguments = networks, log_weights(params), experts, observer, hypers
        return jax.grad(pg_loss.loss, has_aux=True)(params, *arguments)

    @jax.jit
    def apply(state, gradients):
        return pg.apply_gradients(state, gradients, hypers, config.num_updates)

    batch = collect(state.params, keys)
    episodes = batch.experts, batch.observer
    gradients, _ = gradient(state.params, *episodes)
    return {
        "rollout": common.repeated(collect, state.params, keys),
        "random numbers": common.repeated(draw, keys),
        "loss and gradient": common.repeated(gradient, state.params, *episodes),
        "optimiser": common.repeated(apply, state, gradients),
        "raw bits": common.repeated(raw_bits, keys[0]),
    }


def measure(config: TrainConfig, effort: common.Effort) -> dict:
    """One row: training, stepping and the parts, after a first training, timed by turns."""
    ours = common.Ours(config)
    ours.train_first()
    heads = ours.state().params.heads
    stepping = Stepping(config, heads)
    by_steps = Stepping(config, heads, lengths_by_steps)
    contestants: dict[str, Callable[[int], None]] = {
        "ours": ours.work,
        "ceiling": stepping.work,
        "environment": by_steps.work,
    }
    found = common.rates(contestants | parts(config, ours.state()), effort)
    steps = steps_an_update(config)
    updates = found["ours"].median * ours.chunk
    live_steps_per_second = updates * ours.live_steps()
    ceiling = found["ceiling"].median * stepping.live_steps
    environment = found["environment"].median * by_steps.live_steps
    drawing = stepping.CHUNK / found["random numbers"].median + 1 / found["ceiling"].median
    return {
        "head": config.head,
        "num_experts": config.num_experts,
        "envs_per_expert": config.envs_per_expert,
        "updates_before": common.updates_before(config),
        "steps_per_second": updates * steps,
        "live_steps_per_second": live_steps_per_second,
        "ceiling_steps_per_second": found["ceiling"].median * stepping.steps,
        "ceiling_live_steps_per_second": ceiling,
        "environment_live_steps_per_second": environment,
        "share_of_ceiling": live_steps_per_second / ceiling,
        "share_of_environment": live_steps_per_second / environment,
        "share_with_random_numbers": live_steps_per_second / stepping.live_steps * drawing,
        "random_numbers_per_second": found["raw bits"].median * steps,
        "update_milliseconds": 1e3 / updates,
        "stepping_milliseconds": 1e3 / (found["ceiling"].median * stepping.CHUNK),
        "environment_milliseconds": 1e3 / (found["environment"].median * by_steps.CHUNK),
        **{
            f"{name.replace(' ', '_')}_milliseconds": 1e3 / found[name].median
            for name in (*PARTS, "raw bits")
        },
        "spread_live_steps_per_second": [
            x * ours.chunk * ours.live_steps() for x in found["ours"].as_json()
        ],
        "spread_ceiling": [x * stepping.live_steps for x in found["ceiling"].as_json()],
    }


def draw(rows: list[dict]):
    """Time of the parts of an update, beside the whole and the bare environments."""
    figure, panels = common.axes_of(len(rows))
    labels = ["whole update", "stepping alone", "by its own step", "raw bits", *PARTS]
    names = ["update", "stepping", "environment", "raw_bits"]
    names += [part.replace(" ", "_") for part in PARTS]
    colours = [common.OURS, *[common.CEILING] * 3, *[common.COMPILED] * len(PARTS)]
    for panel, row in zip(panels, rows, strict=True):
        panel.barh(labels, [row[f"{name}_milliseconds"] for name in names], color=colours)
        panel.invert_yaxis()
        panel.set_xlabel("milliseconds an update")
        panel.set_title(f"{row['head']}, {row['envs_per_expert']} environments an expert")
    return figure


def main(arguments: list[str] | None = None) -> None:
    """Measure, write, print."""
    out, effort, console = common.options(__doc__, arguments)
    sizes = [("tabular", 64)]
    if effort == common.FULL:
        sizes = [(head, block) for head in ("tabular", "mlp") for block in (64, 1024)]
    rows = [
        measure(PGConfig(head=head, envs_per_expert=block), effort)
        for head, block in common.track(sizes, "ceiling", console)
    ]
    result = {"device": common.device(), "rows": rows}
    table = common.table_of(rows, COLUMNS, "Training against the environments alone")
    common.publish(result, draw(rows), table, out, console)


if __name__ == "__main__":
    main()
