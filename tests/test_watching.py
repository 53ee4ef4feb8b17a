"""What others see of a run: trackers, the live view, figures, and exported policies."""

import importlib.util
import io
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from command_line import run
from rich.console import Console

from ape_jax.algorithms.common import Metrics
from ape_jax.algorithms.task import make_task
from ape_jax.config import PGConfig, PGHypers, RunConfig
from ape_jax.reporting import figures as plotting
from ape_jax.runs import checkpoint, trackers
from ape_jax.runs import export as exporting
from ape_jax.runs.live import LiveView
from ape_jax.runs.metrics import read_updates
from ape_jax.training.trainer import Chunk, Trainer, seed_keys
from ape_jax.types import SettingError

PG = ["--num-updates", "6", "--envs-per-expert", "4", "--seeds", "2", "--quiet"]
PPO = ["--algorithm", "ppo", "--env", "Pendulum-v1", "--head", "gaussian", "--hidden-sizes", "4"]
PPO += ["--envs-per-expert", "4", "--rollout-length", "16", "--num-epochs", "1", "--seeds", "2"]
PPO += ["--num-minibatches", "2", "--num-updates", "6", "--quiet"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run of either algorithm; the second is told to TensorBoard."""
    folder = tmp_path_factory.mktemp("runs")
    assert run("train", *PG, "--out", folder / "pg") == 0
    assert run("train", *PPO, "--tensorboard", "--out", folder / "ppo") == 0
    return folder


def metrics(seeds=2, updates=3, experts=2):
    fields = dict.fromkeys(Metrics._fields, np.zeros((seeds, updates)))
    fields["expert_returns"] = np.arange(seeds * updates * experts, dtype=float).reshape(
        seeds, updates, experts
    )
    fields |= {"pe_return": np.full((seeds, updates), 3.0), "multipliers": None}
    fields["observer_return"] = np.full((seeds, updates), 1.0)
    return Metrics(**fields)


def test_scalars_are_means_over_seeds_of_what_is_known():
    told = metrics()
    told.observer_return[0, 0] = np.nan
    first, second, third = trackers.scalars_of(told)
    assert "observer_return" not in first
    assert "gap" not in first
    assert (second["observer_return"], second["gap"]) == (1.0, 2.0)
    assert third["expert_returns/2"] == (5.0 + 11.0) / 2
    assert not any(name.startswith("multipliers") for name in first)


def test_tracker_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"pip install 'ape-jax\[wandb\]'"):
        trackers.check(False, "project")
    with pytest.raises(SettingError, match=r"needs tensorboardX.*ape-jax\[tensorboard\]"):
        trackers.check(True, None)


def test_tensorboard_gets_every_update(runs):
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    (file,) = (runs / "ppo" / "tensorboard").iterdir()
    content, events = file.read_bytes(), []
    while content:  # A record: its length, a checksum of that, itself, a checksum of that.
        length = int.from_bytes(content[:8], "little")
        data, checksum = content[12 : 12 + length], content[12 + length : 16 + length]
        content = content[16 + length :]
        assert masked_crc32c(data) == int.from_bytes(checksum, "little")
        events.append(Event.FromString(data))
    losses = {e.step: v.simple_value for e in events for v in e.summary.value if "policy" in v.tag}
    rows = read_updates(runs / "ppo" / "metrics.jsonl")
    assert sorted(losses) == [row["update"] for row in rows]
    for row in rows:
        assert losses[row["update"]] == pytest.approx(np.mean(row["policy_loss"]), rel=1e-5)


def test_tensorboard_shows_one_run_alone(tmp_path):
    for updates in (6, 2):
        arguments = [*PG, "--num-updates", updates, "--tensorboard", "--overwrite"]
        assert run("train", *arguments, "--out", tmp_path / "run") == 0
        assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1


def test_tracker_that_fails_is_told_of_and_training_goes_on(tmp_path, monkeypatch, capfd):
    def full(self, update, scalars):
        raise OSError("no room for curves")

    monkeypatch.setattr(trackers.TensorBoard, "log", full)
    assert run("train", *PG, "--tensorboard", "--out", tmp_path / "run") == 0
    printed = " ".join(capfd.readouterr().err.split())
    assert "TensorBoard is told no more: no room for curves" in printed
    monkeypatch.setattr(trackers.TensorBoard, "__init__", full)
    assert run("train", *PG, "--tensorboard", "--out", tmp_path / "other") == 1
    assert "curves cannot be sent" in " ".join(capfd.readouterr().err.split())


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is an extra")
def test_weights_and_biases_keeps_an_offline_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert run("train", *PG, "--wandb", "ape", "--out", tmp_path / "run") == 0
    (kept,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    assert kept.stat().st_size > 1000


def test_live_view_shows_every_expert_the_gap_the_speed_and_the_time_left():
    task = make_task(PGConfig(num_updates=50, envs_per_expert=4))
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    with LiveView(task, 2, 0, console, quiet=False) as view:
        view.show(Chunk(30, 50, None, metrics()))
    shown = console.file.getvalue()
    for word in ("PE", "expert 1", "expert 2", "observer", "gap", "steps / s", "30/50", "2.00"):
        assert word in shown, word


def test_live_view_of_many_experts_shows_the_worst_and_quiet_shows_nothing():
    task = make_task(PGConfig(num_updates=50, num_experts=8, envs_per_expert=4))
    for quiet in (False, True):
        console = Console(file=io.StringIO(), width=120, force_terminal=True)
        with LiveView(task, 2, 0, console, quiet) as view:
            view.show(Chunk(30, 50, None, metrics(experts=8)))
        assert ("worst expert" in console.file.getvalue()) != quiet
    assert not console.file.getvalue()


def test_curves_leave_open_what_is_not_known_and_show_every_expert():
    rows = [
        {
            "update": update,
            "pe_return": [1.0, 3.0],
            "expert_returns": [[0.0, 2.0], [2.0, 4.0]],
            "observer_return": [None, None] if update < 5 else [-1.0, -3.0],
        }
        for update in range(20)
    ]
    figure = plotting.run_curves({"one": rows, "two": rows[:4]})
    top = figure.axes[0]
    experts, observer = top.get_lines()
    np.testing.assert_allclose(experts.get_ydata(), 2.0)
    np.testing.assert_allclose(observer.get_xdata(), np.arange(5, 20))
    np.testing.assert_allclose(observer.get_ydata(), -2.0)
    assert [line.get_label() for line in figure.axes[2].get_lines()] == ["expert 1", "expert 2"]


def test_runs_are_drawn_finished_or_not(runs, tmp_path):
    torn = tmp_path / "on"
    torn.mkdir()
    content = (runs / "pg" / "metrics.jsonl").read_bytes()
    (torn / "metrics.jsonl").write_bytes(content[: len(content) - 20])
    assert run("plot", runs / "ppo", torn, "--out", tmp_path / "made" / "curves.svg") == 0
    assert b"<svg" in (tmp_path / "made" / "curves.svg").read_bytes()
    assert run("plot", runs / "pg") == 0
    assert (runs / "pg" / "curves.png").stat().st_size > 10_000
    for bad in (content[:10], b'{"update": 0, "pe_return": [1.0]}\n'):
        (torn / "metrics.jsonl").write_bytes(bad)
        assert run("plot", torn) == 2
    assert run("plot", runs / "pg", "--out", tmp_path / "made" / "curves.svg" / "x.png") == 2
    (tmp_path / "d.png").mkdir()
    assert run("plot", runs / "pg", "--out", tmp_path / "d.png") == 2


ELSEWHERE = """
import json, sys
from pathlib import Path
import jax, numpy as np
from safetensors.numpy import load_file

folder, observations = Path(sys.argv[1]), np.load(sys.argv[2])
parameters = load_file(folder / "parameters.safetensors")
forward = jax.export.deserialize(bytearray((folder / "policies.jax").read_bytes()))
seed = {name: array[1] for name, array in parameters.items()}
results = forward.call(seed, observations)
assert not any(name.split(".")[0] == "ape_jax" for name in sys.modules)
np.savez(sys.argv[3], **results)
"""


@pytest.mark.parametrize("name", ["pg", "ppo"])
def test_exported_policies_act_alike_in_a_process_without_this_package(name, runs, tmp_path):
    out = tmp_path / "export"
    assert run("export", runs / name, "--out", out) == 0
    assert run("export", runs / name, "--out", out) == 2  # Not unasked.
    _, task, params = checkpoint.load_run(runs / name)
    keys = jax.random.split(jax.random.key(0), 7)
    space = task.world.env.observation_space(task.world.params)
    observations = jax.vmap(space.sample)(keys)
    np.save(tmp_path / "seen.npy", observations)
    (tmp_path / "elsewhere.py").write_text(ELSEWHERE)
    arguments = [sys.executable, "elsewhere.py", str(out), "seen.npy", "results.npz"]
    subprocess.run(arguments, cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": ""})
    heads = jax.tree.map(lambda x: x[1], params.heads)
    expected = jax.vmap(task.networks.distributions, (None, 0))(heads, observations)._asdict()
    got = np.load(tmp_path / "results.npz")
    assert set(got) == set(expected)
    for key, values in expected.items():
        np.testing.assert_allclose(got[key], values, rtol=1e-5, atol=1e-6)
    description = json.loads((out / exporting.DESCRIPTION).read_text())
    assert (description["seeds"], description["num_experts"]) == (2, 2)
    assert description["discrete_actions"] == (name == "pg")
    assert set(description["forward"]["results"]) == set(expected)


def test_chunks_do_not_add_up_in_memory():
    """What a chunk leaves behind is its metrics, which the next replaces."""
    config = PGConfig(num_updates=400, envs_per_expert=4)
    runner, live = Trainer(make_task(config)), []
    for _ in runner.chunks(seed_keys(0, 1), PGHypers(), chunk=20):
        live.append(len(jax.live_arrays()))
    assert max(live[3:]) <= live[2] + 2


def test_saved_settings_say_how_often(tmp_path):
    config = RunConfig(save_every=20)
    config.save(tmp_path / "config.yaml")
    assert RunConfig.load(tmp_path / "config.yaml") == config
    assert (config.chunk, RunConfig().chunk) == (20, 50)
