import dataclasses
import itertools
import json
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from ape_jax.algorithms import pg
from ape_jax.algorithms.common import expert_log_weights
from ape_jax.algorithms.task import make_task
from ape_jax.config import PGConfig, PGHypers, RunConfig
from ape_jax.core import random
from ape_jax.core.distributions import Categorical
from ape_jax.core.policies import ConstantPolicy, TablePolicy
from ape_jax.envs import rollout
from ape_jax.envs.world import World
from benchmarks import (
    ceiling,
    common,
    experts,
    listing,
    memory,
    ppo,
    saving,
    seeds,
    startup,
    throughput,
)

EFFORT = common.Effort(repeats=2, seconds=1e-3, budget=1.0)
TINY = PGConfig(envs_per_expert=2, num_updates=100)
TRAINED = PGConfig(envs_per_expert=16, num_updates=100)
"""Settings of every training in these tests, so that all compile the same program."""


@pytest.fixture(autouse=True)
def no_torch(monkeypatch):
    """Act as if PyTorch were not installed."""
    monkeypatch.setattr(common, "has_torch", lambda: False)


def track(items, _):
    return items


def published(result, figure, table, folder):
    """Publish a result, and read back the file; the picture must be there too."""
    out = folder / "made" / "result.json"
    common.publish(result, figure, table, out, Console(quiet=True))
    assert out.with_suffix(".png").stat().st_size > 5_000
    found = json.loads(out.read_text(), parse_constant=pytest.fail)
    assert "jax" in found["device"]
    return found


@pytest.mark.parametrize("lengths", [ceiling.lengths_by_steps, ceiling.lengths_by_look_ups])
def test_stepping_alone_has_the_episodes_of_the_rollout(lengths, small_grid):
    """The starts and random numbers are the same; the limit cuts some episodes."""
    params = small_grid.default_params
    keys = jax.random.split(jax.random.key(0), 60)
    actors = jnp.repeat(jnp.arange(3), 20)
    probs = jax.nn.softmax(jax.random.normal(jax.random.key(1), (3, 9, 5)))
    experts = TablePolicy(Categorical(jnp.log(probs)))
    tables = experts.table.for_sampling().cumulative
    nobody = ConstantPolicy(Categorical(jnp.zeros(5)))
    world = World(small_grid, params, 8, small_grid.finite_mdp())

    @jax.jit
    def both(keys):
        blocks = keys.reshape(3, 20)
        episodes, _ = rollout.ensemble_episodes(blocks, keys[:1], experts, nobody, world)
        start_keys, action_keys, _ = random.split(keys, 3)
        start = jax.vmap(small_grid.reset_env, (0, None))(start_keys, params)
        uniforms = random.uniforms_of_sixteen_bits(action_keys, 8)
        alone = lengths(tables, actors, start, uniforms, world)
        return episodes.mask.sum(0).reshape(-1), alone

    expected, got = jax.device_get(both(keys))
    assert 8 in expected
    assert len(np.unique(expected)) > 4
    np.testing.assert_array_equal(got, expected)


def test_tables_of_the_ceiling_end_with_the_mixture():
    task = make_task(TINY)

    @jax.jit
    def tables_of(key):
        heads = task.networks.init(key).heads
        return ceiling.tables_of(task.networks, heads, jnp.full(2, -jnp.log(2)))

    tables = tables_of(jax.random.key(0))
    assert tables.shape == (3, 100, 5)
    np.testing.assert_allclose(tables[2], tables[:2].mean(0), atol=1e-6)


def test_contestants_take_turns_and_leave_when_their_budget_is_spent(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(common.time, "perf_counter", lambda: next(clock))
    calls = []
    contestants = {name: lambda count, name=name: calls.append((name, count)) for name in "ab"}
    effort = common.Effort(repeats=5, seconds=4.0, budget=3.0)
    found = common.rates(contestants, effort)
    # Two pieces warm up and are timed: one second each, so four pieces make a round of four.
    assert calls[:4] == [("a", 1), ("a", 1), ("b", 1), ("b", 1)]
    assert calls[4:] == [("a", 4), ("b", 4)] * 3
    assert found["a"] == common.Rate(4.0, 4.0, 4.0)


@pytest.fixture(scope="module")
def stepping() -> ceiling.Stepping:
    """The environments of a tiny training, compiled once."""
    return ceiling.Stepping(TINY, pg_state().params.heads)


def pg_state() -> pg.PGState:
    return pg.create_state(jax.random.key(0), make_task(TINY).networks, PGHypers())


class Idle:
    """Takes the place of training, which other tests compile."""

    chunk = 3
    compile_seconds = 1.0

    def __init__(self, config, hypers=None, seeds=None, threads=None):
        pass

    def work(self, count):
        pass

    def train_first(self):
        pass

    def state(self):
        return pg_state()

    def live_steps(self):
        return 300.0


def test_throughput_leaves_null_what_is_not_run(tmp_path, monkeypatch, stepping):
    monkeypatch.setattr(throughput, "Stepping", lambda *_: stepping)
    monkeypatch.setattr(common, "Ours", Idle)
    row = throughput.measure(TINY, EFFORT, with_eager=False, with_compiled=False)
    result = {"device": common.device(), "rows": [row]}
    table = common.table_of(result["rows"], throughput.COLUMNS, "")
    (row,) = published(result, throughput.draw(result["rows"]), table, tmp_path)["rows"]
    assert (row["head"], row["num_experts"], row["envs_per_expert"]) == ("tabular", 2, 2)
    for name in ("torch_eager", "torch_compiled"):
        assert row[f"{name}_updates_per_second"] is None
    assert row["ratio_eager"] is row["ratio_compiled"] is None
    assert row["steps_per_second"] == pytest.approx(
        row["ours_updates_per_second"] * 2 * 2 * 2 * 100
    )
    assert row["torch_version"] is None
    for of in (row, row["untrained"]):
        assert of["live_steps_per_second"] == of["ours_updates_per_second"] * 300
    assert 0 < row["ceiling_live_steps_per_second"] <= row["ceiling_steps_per_second"]


def test_live_steps_are_those_that_episodes_take():
    """By the visits of the episodes of the same update."""
    config = dataclasses.replace(TINY, envs_per_expert=8)
    ours = common.Ours(config, throughput.AT_REST)
    state = ours.state()
    ours.chunk = 1
    ours.work(1)
    task = make_task(config)
    expected = []
    for _ in range(50):
        key, *keys = jax.random.split(state.key, 3)
        weights = expert_log_weights(task, state.params)
        batch = pg.collect_batch(task, state.params, weights, PGHypers(), tuple(keys))
        expected.append(16 * float(batch.length + batch.observer.lengths()))
        state = dataclasses.replace(state, key=key)
    assert ours.live_steps() == pytest.approx(np.mean(expected), rel=1e-4)
    padded = throughput.steps_an_update(config)
    assert padded / 2 < ours.live_steps() < padded
    np.testing.assert_array_equal(
        state.params.heads["params"]["table"], ours.state().params.heads["params"]["table"]
    )


def test_better_takes_the_number_of_threads_with_the_faster_rate():
    found = {
        "ours": common.Rate(9.0, 9.0, 9.0),
        "eager 1": common.Rate(2.0, 1.0, 3.0),
        "eager 2": common.Rate(1.0, 1.0, 4.0),
    }
    assert throughput.better(found, "eager") == (found["eager 1"], 1)
    assert throughput.better(found, "compiled") == (None, None)
    found |= {"compiled 1": found["eager 1"], "untrained compiled 1": found["ours"]}
    assert throughput.better(found, "compiled") == (found["eager 1"], 1)


def test_eager_is_left_out_where_it_takes_too_much_memory():
    def fits(head, experts, block):
        config = PGConfig(head=head, num_experts=experts, envs_per_expert=block)
        return throughput.eager_fits(config)

    assert fits("tabular", 2, 16384)
    assert fits("mlp", 2, 1024)
    assert not fits("mlp", 2, 16384)


def test_scaling_counts_the_steps_of_all_seeds(monkeypatch):
    monkeypatch.setattr(common, "Ours", Idle)
    monkeypatch.setattr(common, "rates", lambda *_: {"ours": common.Rate(2.0, 1.0, 4.0)})
    (row,) = throughput.scaling([(4, 64)], EFFORT, track)
    assert throughput.draw([], [row]).axes[0].get_xlabel() == "seeds side by side"
    assert row["steps_per_second"] == 2 * 3 * 4 * (2 * 2 * 64 * 100)
    assert row["live_steps_per_second"] == 2 * 3 * 300
    assert row["spread"] == [row["steps_per_second"] / 2, row["steps_per_second"] * 2]


def test_ceiling_reports_every_part(tmp_path, monkeypatch, stepping):
    monkeypatch.setattr(ceiling, "Stepping", lambda *_: stepping)
    monkeypatch.setattr(common, "Ours", Idle)
    row = ceiling.measure(TINY, EFFORT)
    table = common.table_of([row], ceiling.COLUMNS, "")
    result = {"device": common.device(), "rows": [row]}
    (row,) = published(result, ceiling.draw([row]), table, tmp_path)["rows"]
    for share, alone in (("ceiling", "ceiling"), ("environment", "environment")):
        assert row[f"share_of_{share}"] == pytest.approx(
            row["live_steps_per_second"] / row[f"{alone}_live_steps_per_second"]
        )
    for part in ceiling.PARTS:
        assert row[f"{part.replace(' ', '_')}_milliseconds"] > 0


def test_seeds_are_compared_with_processes(tmp_path, monkeypatch):
    def processes(count, seeds, num_updates, num_devices=1):
        assert num_updates == 100
        seconds = 2.0 + seeds / num_devices if count == 1 else 6.0
        return seconds, [{"updates_per_second": 10.0}] * count

    monkeypatch.setattr(seeds, "processes", processes)
    monkeypatch.setattr(seeds.os, "cpu_count", lambda: 2)
    result = seeds.measure((2,), TINY, EFFORT, 2)
    columns = {"seeds": "seeds", "updates / s": "updates_per_second"}
    table = common.table_of(result["rows"], columns, "")
    result = published(result, seeds.draw(result), table, tmp_path)
    assert [row["seeds"] for row in result["rows"]] == [2]
    ten = result["ten_seeds"]
    assert ten["ratio_one_after_another"] == 10 * 3 / 12
    assert ten["ratio_side_by_side"] == 10 / 2 * 6 / 12
    assert ten["ratio_over_cores"] == 12 / 7
    assert ten["side_by_side_updates_per_second"] == 20
    assert "times 10" in ten["estimate"]


@pytest.mark.slow
def test_one_training_says_what_compiling_took():
    found = seeds.train(RunConfig().seeds, TRAINED)
    assert found["first_chunk_seconds"] > 0
    assert found["updates_per_second"] > 0


def test_listing_without_torch(tmp_path):
    result = listing.measure(EFFORT)
    columns = {"ours": "meaning", "ratio": "ratio"}
    table = common.table_of(result["rows"], columns, "")
    rows = published(result, listing.draw(result["rows"]), table, tmp_path)["rows"]
    assert [row["way"] for row in rows] == list(listing.WAYS)
    for row in rows:
        assert row["ours_updates_per_second"] > 0
        assert row["listing_updates_per_second"] is row["ratio"] is None


def test_startup_splits_medians(tmp_path, monkeypatch):
    def start(cache):
        assert cache.is_dir()
        kept = cache / "program"
        total = 5.0 if kept.exists() else 9.0
        kept.touch()
        parts = {f"{part}_seconds": 1.0 for part in startup.PARTS}
        return parts | {"first_update_seconds": total, "process_seconds": total}

    seconds = itertools.count()
    monkeypatch.setattr(startup, "start", start)
    monkeypatch.setattr(startup, "seconds_of", lambda program: float(next(seconds)))
    result = startup.measure(3)
    table = common.table_of(result["rows"], {"cache": "cache"}, "")
    found = published(result, startup.draw(result["rows"]), table, tmp_path)
    cold, warm = found["rows"]
    assert (cold["cache"], warm["cache"]) == ("cold", "warm")
    assert (cold["first_update_seconds"], warm["first_update_seconds"]) == (9.0, 5.0)
    assert [row["program"] for row in found["programs"]] == list(startup.PROGRAMS)
    number = len(startup.PROGRAMS)
    assert [row["seconds"] for row in found["programs"]] == [number + i for i in range(number)]
    assert found["programs"][0]["spread_seconds"] == [0.0, 2.0 * number]


@pytest.mark.slow
def test_the_command_starts_and_says_where_its_seconds_go(tmp_path):
    found = startup.start(tmp_path)
    parts = sum(found[f"{part}_seconds"] for part in startup.PARTS)
    assert found["compile_seconds"] > 0
    assert parts < found["first_update_seconds"] < found["process_seconds"]


def test_memory_grows_with_a_chunk_by_its_metrics_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CHUNK", 2)
    monkeypatch.setattr(memory, "measured", memory.run)  # In this process.
    result = memory.measure((2,), (10,), (2, 400), track)
    table = common.table_of(result["rows"], {"B": "envs_per_expert"}, "")
    result = published(result, memory.draw(result), table, tmp_path)
    (row,) = result["rows"]
    assert row["temp_bytes_per_step"] > 0
    # The peak does not grow where memory that was freed earlier is used again.
    assert row["peak_growth_bytes"] is None or 0 <= row["peak_growth_bytes"] < 1e8
    short, long = result["chunks"]
    metrics = long["metrics_bytes"] - short["metrics_bytes"]
    assert metrics == 398 * 36
    for name in ("temp_bytes", "output_bytes"):
        assert abs(long[name] - short[name]) < metrics + 1024


class IdleEnsemble:
    """Takes the place of an ensemble that a test would have to compile."""

    spent: ClassVar = {"compile_seconds": 1.0, "compile_cpu_seconds": 1.0}

    def __init__(self, config, hypers):
        assert config.algorithm == "ppo"
        assert hypers.beta > 0
        self.config, self.cpu_seconds = config, [0.25 * config.num_experts]
        self.num_envs = config.num_experts * config.envs_per_expert

    def work(self, count):
        pass


def test_ppo_counts_the_steps_of_whole_runs(tmp_path, monkeypatch):
    def program(num_envs, num_updates):
        assert num_updates == 20_000 // (num_envs * 128)
        return ppo.Program(lambda key: jnp.full(num_updates, 7.0), IdleEnsemble.spent)

    monkeypatch.setattr(ppo, "ours", program)
    monkeypatch.setattr(ppo, "plain", program)
    monkeypatch.setattr(ppo, "Ensemble", IdleEnsemble)
    monkeypatch.setattr(
        common, "rates", lambda x, _: {k: common.Rate(2.0 / (1 + int(k)), 0.5, 4.0) for k in x}
    )
    result = ppo.measure(20_000, 3, EFFORT, sizes=(1, 2))
    table = common.table_of(result["rows"], ppo.PLAIN_COLUMNS, "")
    assert common.table_of(result["ensembles"], ppo.ENSEMBLE_COLUMNS, "").row_count == 3
    assert common.table_of(result["images"], ppo.IMAGES_COLUMNS, "").row_count == 1
    result = published(result, ppo.draw(result), table, tmp_path)
    assert [(row["num_updates"], row["steps"]) for row in result["rows"]] == [
        (39, 39 * 4 * 128),
        (2, 2 * 64 * 128),
    ]
    for row in result["rows"]:
        assert row["ratio"] == row["ours_steps_per_second"] / row["plain_steps_per_second"]
        assert row["ours_returns"] == [7] * 3
        assert row["ours_return"] == row["plain_return"] == 7
    alone, *observed = result["ensembles"]
    assert (alone["observer"], alone["update_seconds"]) == ("none", 1 / (2 * ppo.UPDATES))
    assert [row["num_experts"] for row in observed] == [1, 2]
    assert [row["times_one_expert"] for row in observed] == pytest.approx([2, 3])
    assert [row["times_one_expert_cpu"] for row in observed] == [1, 2]
    for row in observed:
        steps = row["num_experts"] * 16 * 128
        assert row["steps_per_second"] == pytest.approx(steps / row["update_seconds"])
    (images,) = result["images"]
    assert images["steps_per_second"] == 2.0 * images["num_envs"] * 128
    assert images["steps_per_cpu_second"] == images["num_envs"] * 128 / 0.5


@pytest.mark.slow
def test_ppo_plain_ppo_and_an_ensemble_are_trained_and_timed():
    row = ppo.against_plain(4, 2 * 4 * 128, 2)
    assert row["num_updates"] == 2
    for name in ("ours", "plain"):
        assert row[f"{name}_compile_seconds"] > 0
        # An untrained policy falls after about twenty steps; no return is missing.
        assert len(row[f"{name}_returns"]) == 2
        assert all(9 <= x < 60 for x in row[f"{name}_returns"])
    (alone,) = ppo.ensembles((), 1, EFFORT)
    assert (alone["num_envs"], alone["times_one_expert"]) == (16, 1)
    assert alone["cpu_update_seconds"] > 0


@pytest.mark.slow
def test_protection_and_price_of_more_experts_are_differences_of_exact_returns(tmp_path):
    (name, defence), *_ = experts.DEFENCES.items()
    row = experts.row(name, defence, 2, 20, 2)
    table = common.table_of([row], {"E": "num_experts"}, "")
    result = {"device": common.device(), "rows": [row]}
    assert published(result, experts.draw(result), table, tmp_path)["rows"] == [row]
    assert row["clone"] == "uniform_mixture"
    for pe, clone, protection, sampling in zip(
        *(row[of]["values"] for of in ("pe_return", "uniform_mixture", "protection")),
        row["sampling_clone"]["values"],
        strict=True,
    ):
        assert protection == pytest.approx(pe - clone, abs=1e-4)
        assert sampling == pytest.approx(pe, abs=0.5)  # The theorem.
    assert row["update_ms"] >= 0


@pytest.mark.slow
def test_saving_is_compared_with_none_and_a_long_run_does_not_grow(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "SETTINGS", {"as it comes": None})
    result = saving.measure(TRAINED, 1)
    table = common.table_of(result["rows"], {"saving": "saving", "share": "share"}, "")
    rows = published(result, saving.draw(result), table, tmp_path)["rows"]
    assert [row["saving"] for row in rows] == ["nothing kept", "metrics alone", *saving.SETTINGS]
    assert rows[1]["share"] == 0
    memory = saving.growth(1000)
    assert memory["last_mebibytes"] - memory["first_mebibytes"] < 20
