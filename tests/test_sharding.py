"""Any number of devices trains the same run: the same random streams, and sums in another order."""

import json
import os
import socket
import subprocess
import sys
import textwrap

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ape_jax import algorithms, cli
from ape_jax.algorithms import pg
from ape_jax.algorithms.task import make_task
from ape_jax.config import PGConfig, PGHypers
from ape_jax.runs import checkpoint
from ape_jax.training import devices as sharding
from ape_jax.types import SettingError

KEY = jax.random.key(3)


def spread(function, places):
    """As over ``places`` devices, on one: a mapped axis of that size."""
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


@pytest.mark.parametrize("observer", ["uniform", "learned"])
def test_places_train_what_one_place_trains(observer, small_grid):
    """Twenty updates, as float32 rounds; all places end alike."""
    config = PGConfig(envs_per_expert=16, num_updates=20, observer=observer)
    task = make_task(config, small_grid)
    hypers = PGHypers(min_return=-4.0)
    state = pg.create_state(KEY, task.networks, hypers)
    one, many = (
        jax.jit(lambda state: algorithms.updates(task, state, hypers, 20))(state),
        jax.jit(spread(lambda state: algorithms.updates(task, state, hypers, 20, "places"), 8))(
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
    devices = jax.devices()[:1] * 8
    for num_seeds, shape in ((1, (1, 8)), (10, (2, 4)), (12, (4, 2)), (16, (8, 1))):
        mesh = sharding.make_mesh(num_seeds, 64, devices)
        assert tuple(mesh.shape.values()) == shape


def test_environments_that_do_not_divide_are_refused_with_the_next_that_do():
    message = r"envs_per_expert must be divisible by 3.*got 64\. Choose 66"
    with pytest.raises(SettingError, match=message):
        sharding.make_mesh(1, 64, jax.devices()[:1] * 3)


def test_devices_that_are_not_there_are_refused(monkeypatch):
    with pytest.raises(SettingError, match="devices must be at least 1; got 0"):
        sharding.start(0)
    monkeypatch.setattr(sharding, "_is_cpu", lambda: False)
    with pytest.raises(SettingError, match=r"devices must be at most 1.*got 4"):
        sharding.start(4)


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        (sharding.Cluster("nowhere", 2, 0), "coordinator must be host:port; got 'nowhere'"),
        (sharding.Cluster("localhost:1", 2, 2), r"process_id must be .* got 2 of 2"),
        (sharding.Cluster("localhost:1", 2, 1), r"coordinator must answer within 0 s; localhost:1"),
    ],
)
def test_cluster_that_cannot_be_joined_is_told_at_once(cluster, message, monkeypatch):
    monkeypatch.setattr(sharding, "CONNECT_SECONDS", 0)
    with pytest.raises(SettingError, match=message):
        sharding._connect(cluster)


def test_cluster_that_jax_does_not_detect_must_be_described(monkeypatch):
    def undetected(*_, **__):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", undetected)
    with pytest.raises(SettingError, match="distributed must know --coordinator"):
        sharding._connect(sharding.Cluster())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--process-id", "1"], "go with --distributed; add it"),
        (["--devices", "0"], "devices must be at least 1; got 0"),
    ],
)
def test_command_line_tells_what_is_wrong_with_devices(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "--out", str(tmp_path / "run"), *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def command(out, *arguments):
    settings = ["--num-updates", "20", "--envs-per-expert", "16", "--seeds", "2", "--out", str(out)]
    return [sys.executable, "-c", "from ape_jax.cli import main; main()", "train", *settings] + [
        str(x) for x in arguments
    ]


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


@pytest.mark.slow
def test_eight_devices_and_two_processes_of_two_train_the_same_run(tmp_path):
    subprocess.run(command(tmp_path / "one"), check=True, timeout=300)
    eight = command(tmp_path / "eight", "--devices", 8, "--save-every", 10)
    subprocess.run(eight, check=True, timeout=300)
    address = f"localhost:{free_port()}"
    processes = [
        subprocess.Popen(
            command(
                *(tmp_path / "processes", "--devices", 2, "--distributed"),
                *("--coordinator", address, "--num-processes", 2, "--process-id", number),
            )
        )
        for number in (1, 0)
    ]
    try:
        assert [process.wait(timeout=300) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    assert (tmp_path / "processes" / "metrics.jsonl").read_text().count("\n") == 20
    assert checkpoint.newest_sound(tmp_path / "processes") == 20
    # What eight devices had after ten updates, on one.
    for left in ("summary.json", "checkpoints/final", "checkpoints/00000020"):
        (tmp_path / "eight" / left).rename(tmp_path / left.replace("/", "_"))
    program = "from ape_jax.cli import main; main()"
    resume = [sys.executable, "-c", program, "train", "--resume", str(tmp_path / "eight")]
    subprocess.run(resume, check=True, timeout=300)
    _, _, expected = checkpoint.load_run(tmp_path / "one")
    for name in ("eight", "processes"):
        _, _, params = checkpoint.load_run(tmp_path / name)
        chex.assert_trees_all_close(params, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_any_environment_trains_on_a_divided_cpu():
    """Environments whose module made arrays before the CPU was divided."""
    program = """
        from ape_jax.training import devices as sharding
        devices = sharding.start(2)
        from ape_jax.config import Hypers, TrainConfig
        from ape_jax.algorithms.task import make_task
        from ape_jax.training.trainer import Trainer, seed_keys
        import jax, json
        task = make_task(TrainConfig(num_updates=2, envs_per_expert=4))
        runner, keys = Trainer(task, sweep=True), seed_keys(0, 2)
        betas = Hypers(beta=jax.numpy.array([0.1, 0.3]))
        every = jax.tree.map(lambda x: jax.numpy.broadcast_to(x, (2,)), betas)
        *_, last = runner.chunks(keys, every)
        multiplied = jax.jit(lambda state, x: state.params.heads["params"]["table"] * x)
        multiplied(runner.create(keys, every), last.metrics.pe_return[0, 0])
        returns = {}
        for env in ("FrozenLake-misc", "FourRooms-misc", "CartPole-v1"):
            task = make_task(TrainConfig(env=env, head="mlp", num_updates=2, envs_per_expert=4))
            *_, last = Trainer(task, devices=devices).chunks(seed_keys(0, 1), Hypers())
            returns[env] = [len(devices), *last.metrics.pe_return[0].tolist()]
        print(json.dumps(returns))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        env=os.environ,
    )
    returns = json.loads(done.stdout.splitlines()[-1])
    assert len(returns) == 3
    assert all(
        values[0] == 2 and np.all(np.isfinite(values)) and len(values) == 3
        for values in returns.values()
    )
