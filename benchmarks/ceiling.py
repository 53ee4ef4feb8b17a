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
from benchmarks import common

PARTS = ("rollout", "random numbers", "loss and gradient", "optimiser")
COLUMNS = {
    "head": "head",
    "B": "envs_per_expert",
    "steps / s": "steps_per_second",
    "ceiling": "ceiling_steps_per_second",
    "share": "share_of_ceiling",
    "share, with random numbers": "share_with_random_numbers",
    "update ms": "update_milliseconds",
    **{part: f"{part.replace(' ', '_')}_milliseconds" for part in PARTS},
}


def returns(
    tables: Float[Array, "P S A"],
    actors: Int[Array, " N"],
    start: tuple[Int[Array, " N"], Any],
    uniforms: Float[Array, "T N"],
    env,
    env_params,
) -> Float[Array, " N"]:
    """Returns of single episodes, by the loop of ``rollout.episodes`` without anything else in it.

    Nothing is recorded, and random numbers come from outside. An episode that has ended continues,
    and its further rewards do not count.

    Args:
      tables: P(action ≤ a) of every policy in every state.
      actors: the policy that acts in each episode.
      start: observations and states.
      uniforms: numbers from [0, 1) that decide the actions.
      env: an environment with finite observations whose steps need no random numbers.
      env_params: its parameters.
    """
    unused = jax.random.key(0)

    def step(carry, uniforms):
        (observations, states), mask, total = carry
        policies = CumulativeCategorical(tables[actors, observations])
        actions = jax.vmap(CumulativeCategorical.sample)(policies, uniforms[:, None])
        observations, states, rewards, terminated, _ = jax.vmap(
            env.step_env, in_axes=(None, 0, 0, None)
        )(unused, states, actions, env_params)
        total = total + jnp.where(mask, rewards, 0.0)
        return ((observations, states), mask & ~terminated, total), None

    carry = (start, jnp.ones(actors.shape, bool), jnp.zeros(actors.shape))
    (_, _, total), _ = jax.lax.scan(step, carry, uniforms)
    return total


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

    def __init__(self, config: TrainConfig):
        """Draw policies, starts and random numbers."""
        task = make_task(config)
        key_params, key_starts, key_uniforms = jax.random.split(jax.random.key(0), 3)
        heads = task.networks.init(key_params).heads
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
                found = returns(tables, actors, start, uniforms, task.world.env, task.world.params)
                return total + jnp.sum(found), None

            return jax.lax.scan(one, 0.0, starts)[0]

        self.work = common.repeated(run, tables, starts, uniforms)
        self.steps = self.CHUNK * uniforms.size


def steps_an_update(config: TrainConfig) -> int:
    """Environment steps that one update simulates, of experts and observer."""
    task = make_task(config)
    return 2 * config.num_experts * config.envs_per_expert * task.world.horizon


def parts(config: TrainConfig) -> dict[str, common.Contestant]:
    """The parts of an update, each jitted alone; the rollout includes its random numbers.

    ``raw bits`` draws as many numbers as there are steps from one key, which is the fastest way.
    """
    task, hypers = make_task(config), PGHypers()
    networks = task.networks
    state = pg.create_state(jax.random.key(0), networks, hypers)
    keys = tuple(jax.random.split(jax.random.key(1)))

    def log_weights(params):
        return expert_log_weights(task, params)

    @jax.jit
    def collect(params, keys):
        return pg.collect(task, params, log_weights(params), hypers, keys)

    @jax.jit
    def draw(keys):
        both = jnp.concatenate([pg.episode_keys(x, config, None).reshape(-1) for x in keys])
        start_keys, action_keys, _ = jax.lax.optimization_barrier(random.split(both, 3))
        start = jax.vmap(task.world.env.reset_env, (0, None))(start_keys, task.world.params)
        return start, random.uniforms(action_keys, task.world.horizon)

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

    episodes = collect(state.params, keys)
    gradients, _ = gradient(state.params, *episodes)
    return {
        "rollout": common.repeated(collect, state.params, keys),
        "random numbers": common.repeated(draw, keys),
        "loss and gradient": common.repeated(gradient, state.params, *episodes),
        "optimiser": common.repeated(apply, state, gradients),
        "raw bits": common.repeated(raw_bits, keys[0]),
    }


def measure(config: TrainConfig, effort: common.Effort) -> dict:
    """One row: training, stepping and the parts, timed by turns."""
    ours, stepping = common.Ours(config), Stepping(config)
    contestants: dict[str, Callable[[int], None]] = {"ours": ours.work, "ceiling": stepping.work}
    found = common.rates(contestants | parts(config), effort)
    steps = steps_an_update(config)
    steps_per_second = found["ours"].median * ours.chunk * steps
    ceiling = found["ceiling"].median * stepping.steps
    drawing = steps / ceiling + 1 / found["random numbers"].median
    return {
        "head": config.head,
        "num_experts": config.num_experts,
        "envs_per_expert": config.envs_per_expert,
        "steps_per_second": steps_per_second,
        "ceiling_steps_per_second": ceiling,
        "share_of_ceiling": steps_per_second / ceiling,
        "share_with_random_numbers": steps_per_second / steps * drawing,
        "random_numbers_per_second": found["raw bits"].median * steps,
        "update_milliseconds": 1e3 / (found["ours"].median * ours.chunk),
        "stepping_milliseconds": 1e3 * steps / ceiling,
        **{
            f"{name.replace(' ', '_')}_milliseconds": 1e3 / found[name].median
            for name in (*PARTS, "raw bits")
        },
        "spread_steps_per_second": [x * ours.chunk * steps for x in found["ours"].as_json()],
        "spread_ceiling": [x * stepping.steps for x in found["ceiling"].as_json()],
    }


def draw(rows: list[dict]):
    """Time of the parts of an update, beside the whole and the bare environments."""
    figure, panels = common.axes_of(len(rows))
    labels = ["whole update", "stepping alone", "raw bits", *PARTS]
    names = ["update", "stepping", "raw_bits", *(part.replace(" ", "_") for part in PARTS)]
    colours = [common.OURS, common.CEILING, common.CEILING, *[common.COMPILED] * len(PARTS)]
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
