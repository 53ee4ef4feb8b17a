"""Any number of devices trains the same run: the same random streams, and sums in another order."""

import json
import socket
import subprocess
import sys
import textwrap

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import run
from jax.extend import backend

from ape_jax import algorithms
from ape_jax.algorithms import pg
from ape_jax.algorithms.task import make_task
from ape_jax.config import PGConfig, PGHypers, PPOConfig
from ape_jax.runs import checkpoint
from ape_jax.training import devices
from ape_jax.types import SettingError

KEY = jax.random.key(3)


def spread(function, places):
    """Map over an axis of so many places on one device, as if they were devices."""
    return jax.vmap(function, axis_name="places", axis_size=places, in_axes=None)


def test_every_place_runs_its_share_of_the_same_episodes(small_task, hypers):
    params = small_task.networks.init(KEY)
    log_weights = pg.expert_log_weights(small_task, params)
    keys = tuple(jax.random.split(KEY))

    def collect(axis_name):
        return pg.collect(small_task, params, log_weights, hypers, keys, axis_name)

    whole = jax.jit(lambda: collect(None))()
    parts = jax.jit(lambda: spread(lambda _: collect("places"), 4)(0))()
    for ours, expected in zip(parts, whole, strict=True):
        # [places, T, (E,) B/4] to [T, E, B]: the observer's are in blocks of experts as well.
        blocks = jax.tree.map(lambda x: x.reshape(4, *x.shape[1:2], 2, 4), ours)
        together = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 2).reshape(-1, 2, 16), blocks)
        expected = jax.tree.map(lambda x: x.reshape(-1, 2, 16), expected)
        chex.assert_trees_all_equal(together, expected)


def test_places_train_what_one_place_trains(small_grid):
    """Equal to rounding after ten updates, and all places end alike."""
    config = PGConfig(envs_per_expert=16, num_updates=10, observer="learned")
    task = make_task(config, small_grid)
    hypers = PGHypers(min_return=-4.0)
    state = pg.create_state(KEY, task.networks, hypers)
    one, many = (
        jax.jit(lambda state: algorithms.updates(task, state, hypers, 10))(state),
        jax.jit(spread(lambda state: algorithms.updates(task, state, hypers, 10, "places"), 8))(
            state
        ),
    )
    for place in (0, 7):
        state, metrics = jax.tree.map(lambda x, place=place: x[place], many)
        chex.assert_trees_all_close(
            (state.params, state.multipliers, metrics),
            (one[0].params, one[0].multipliers, one[1]),
            rtol=2e-4,
            atol=2e-4,
        )


def test_seeds_are_spread_before_environments():
    eight = jax.devices()[:1] * 8
    for num_seeds, shape in ((1, (1, 8)), (10, (2, 4)), (12, (4, 2)), (16, (8, 1))):
        mesh = devices.make_mesh(PGConfig(), num_seeds, eight)
        assert tuple(mesh.shape.values()) == shape


def test_environments_that_do_not_divide_are_refused_with_the_next_that_do():
    message = r"envs_per_expert must be divisible by 3.*got 64\. Choose 66"
    with pytest.raises(SettingError, match=message):
        devices.make_mesh(PGConfig(), 1, jax.devices()[:1] * 3)


def test_ppo_spreads_seeds_alone():
    two = jax.devices()[:1] * 2
    mesh = devices.make_mesh(PPOConfig(), 4, two)
    assert mesh.shape == {"seeds": 2, "environments": 1}
    with pytest.raises(SettingError, match="seeds must be divisible by the 2 devices"):
        devices.make_mesh(PPOConfig(), 3, two)


def test_devices_that_are_not_there_are_refused(monkeypatch):
    with pytest.raises(SettingError, match="devices must be at least 1; got 0"):
        devices.start(0)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(SettingError, match=r"devices must be at most 1.*got 4"):
        devices.start(4)


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        (devices.Cluster("nowhere", 2, 0), "coordinator must be host:port; got 'nowhere'"),
        (devices.Cluster("localhost:1", 2, 2), r"process_id must be .* got 2 of 2"),
        (devices.Cluster("localhost:1", 2, 1), r"coordinator must answer within 0 s; localhost:1"),
        (devices.Cluster(), "distributed needs --coordinator"),
    ],
)
def test_cluster_that_cannot_be_joined_is_reported_at_once(cluster, message, monkeypatch):
    def undetected(*_, **__):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(devices, "CONNECT_SECONDS", 0)
    monkeypatch.setattr(jax.distributed, "initialize", undetected)
    monkeypatch.setattr(backend, "clear_backends", lambda: None)
    with pytest.raises(SettingError, match=message):
        devices.start(cluster=cluster)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--process-id", "1"], "go with --distributed; add it"),
        (["--devices", "0"], "devices must be at least 1; got 0"),
    ],
)
def test_command_line_says_what_is_wrong_with_devices(arguments, message, tmp_path, capsys):
    assert run("train", "--out", tmp_path / "run", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def arguments_of(out, *more):
    settings = {"num-updates": 6, "envs-per-expert": 8, "seeds": 2, "save-every": 3, "out": out}
    flags = [str(part) for name, value in settings.items() for part in (f"--{name}", value)]
    return ["train", *flags, *map(str, more)]


def start_process(arguments):
    program = "from ape_jax.cli import main; main()"
    return subprocess.Popen([sys.executable, "-c", program, *arguments])


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


@pytest.mark.slow
def test_eight_devices_and_two_processes_of_two_train_the_same_run(tmp_path):
    address = f"localhost:{free_port()}"
    processes = [start_process(arguments_of(tmp_path / "eight", "--devices", 8))]
    for number in (1, 0):
        numbers = ("--num-processes", 2, "--process-id", number)
        flags = ("--devices", 2, "--distributed", "--coordinator", address, *numbers)
        processes.append(start_process(arguments_of(tmp_path / "processes", *flags)))
    try:
        assert run(*arguments_of(tmp_path / "one")) == 0
        assert [process.wait(timeout=300) for process in processes] == [0, 0, 0]
    finally:
        for process in processes:
            process.kill()
    assert (tmp_path / "processes" / "metrics.jsonl").read_text().count("\n") == 6
    assert checkpoint.newest_sound(tmp_path / "processes") == 6
    # Go on with one device from where eight devices were after three updates.
    for removed in ("summary.json", "checkpoints/final", "checkpoints/00000006"):
        (tmp_path / "eight" / removed).rename(tmp_path / removed.replace("/", "_"))
    assert run("train", "--resume", tmp_path / "eight") == 0
    _, _, expected = checkpoint.load_run(tmp_path / "one")
    for name in ("eight", "processes"):
        _, _, params = checkpoint.load_run(tmp_path / name)
        chex.assert_trees_all_close(params, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_environment_whose_module_made_arrays_trains_on_a_divided_cpu():
    """FrozenLake's module makes an array when it is imported, before the CPU is divided."""
    program = """
        from ape_jax.training import devices
        chosen = devices.start(2)
        import jax, json
        from ape_jax.algorithms.task import make_task
        from ape_jax.config import PGConfig, PGHypers
        from ape_jax.training.trainer import Trainer, seed_keys
        task = make_task(PGConfig(env="FrozenLake-misc", num_updates=1, envs_per_expert=2))
        trainer, keys = Trainer(task, devices=chosen), seed_keys(0, 1)
        *_, last = trainer.chunks(keys, PGHypers())
        # A fresh state lies on one device, as the metrics do.
        jax.tree.map(
            lambda x: x * last.metrics.pe_return[0, 0],
            trainer.create(keys, PGHypers()).params.heads,
        )
        print(json.dumps([len(chosen), *last.metrics.pe_return[0].tolist()]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    num_devices, found = json.loads(done.stdout.splitlines()[-1])
    assert num_devices == 2
    assert np.isfinite(found)
