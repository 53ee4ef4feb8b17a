"""Everything that shows a run: trackers, the live view, figures, exported policies."""

import importlib.util
import io
import json
import logging
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from command_line import PG, TASKS, run
from rich.console import Console

from ape_jax.algorithms.common import Metrics
from ape_jax.config import PGConfig
from ape_jax.reporting import figures
from ape_jax.runs import checkpoint, export, trackers
from ape_jax.runs.callbacks import LiveView
from ape_jax.runs.metrics import read_updates
from ape_jax.training.trainer import Chunk
from ape_jax.types import RunError, SettingError


def metrics(seeds=2, updates=3, experts=2):
    fields = dict.fromkeys(Metrics._fields, np.zeros((seeds, updates)))
    fields["expert_returns"] = np.arange(seeds * updates * experts, dtype=float).reshape(
        seeds, updates, experts
    )
    fields |= {"pe_return": np.full((seeds, updates), 3.0), "multipliers": None}
    fields["observer_return"] = np.full((seeds, updates), 1.0)
    return Metrics(**fields)


def test_scalars_are_means_over_seeds_of_what_is_known():
    known = metrics()
    known.observer_return[0, 0] = np.nan
    first, second, third = trackers.scalars_of(known)
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


def test_tensorboard_gets_every_update(ppo_run):
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    (file,) = (ppo_run / "tensorboard").iterdir()
    content, events = file.read_bytes(), []
    while content:  # A record: its length, a checksum of that, itself, a checksum of that.
        length = int.from_bytes(content[:8], "little")
        data, checksum = content[12 : 12 + length], content[12 + length : 16 + length]
        content = content[16 + length :]
        assert masked_crc32c(data) == int.from_bytes(checksum, "little")
        events.append(Event.FromString(data))
    losses = {e.step: v.simple_value for e in events for v in e.summary.value if "policy" in v.tag}
    rows = read_updates(ppo_run / "metrics.jsonl")
    assert sorted(losses) == [row["update"] for row in rows]
    for row in rows:
        assert losses[row["update"]] == pytest.approx(np.mean(row["policy_loss"]), rel=1e-5)


def test_tensorboard_shows_one_run_alone(tmp_path):
    for _ in range(2):
        arguments = [*PG, "--tensorboard", "--overwrite"]
        assert run("train", *arguments, "--out", tmp_path / "run") == 0
        assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1


def broken(where, calls):
    """A tracker that fails at one of its three moments, and the moments that came."""

    def at(moment):
        calls.append(moment)
        if moment == where:
            raise OSError("no room for curves")

    def start():
        at("start")
        return lambda scalars, update: at("send"), lambda: at("close")

    return trackers.Tracker("Broken", start)


@pytest.mark.parametrize(
    ("where", "expected"),
    [("send", ["start", "send"]), ("close", ["start", *["send"] * 6, "close"])],
)
def test_tracker_that_fails_is_left_alone_with_a_warning(where, expected, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("ape_jax"), "propagate", True)
    chunk, calls = Chunk(6, 50, None, metrics()), []
    with broken(where, calls) as tracker:
        tracker(chunk)
        tracker(chunk)
    assert calls == expected
    assert "Broken" in caplog.text
    assert "no room for curves" in caplog.text


def test_tracker_that_does_not_start_ends_the_training():
    with pytest.raises(RunError, match=r"Broken does not start .*no room"):
        broken("start", [])(Chunk(6, 50, None, metrics()))


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is an extra")
def test_weights_and_biases_keeps_an_offline_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert run("train", *PG, "--wandb", "ape", "--out", tmp_path / "run") == 0
    (kept,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    assert kept.stat().st_size > 1000


def shown_by_live_view(experts):
    task = TASKS(PGConfig(num_updates=50, num_experts=experts, envs_per_expert=4))
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    with LiveView(task, 2, 0, console) as view:
        view(Chunk(30, 50, None, metrics(experts=experts)))
    return console.file.getvalue()


def test_live_view_shows_every_expert_the_gap_and_the_speed():
    shown = shown_by_live_view(2)
    for word in ("PE", "expert 1", "expert 2", "observer", "gap", "steps / s", "30/50", "2.00"):
        assert word in shown, word


def test_live_view_of_many_experts_shows_the_worst():
    assert "worst expert" in shown_by_live_view(8)


def test_quiet_shows_nothing(tmp_path, capfd):
    assert run("train", *PG, "--out", tmp_path / "run") == 0
    assert not capfd.readouterr().err


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
    figure = figures.run_curves({"one": rows, "two": rows[:4]})
    top = figure.axes[0]
    experts, observer = top.get_lines()
    np.testing.assert_allclose(experts.get_ydata(), 2.0)
    np.testing.assert_allclose(observer.get_xdata(), np.arange(5, 20))
    np.testing.assert_allclose(observer.get_ydata(), -2.0)
    assert [line.get_label() for line in figure.axes[2].get_lines()] == ["expert 1", "expert 2"]


def test_runs_are_drawn_finished_or_not(pg_run, ppo_run, tmp_path):
    torn = tmp_path / "on"
    torn.mkdir()
    content = (pg_run / "metrics.jsonl").read_bytes()
    (torn / "metrics.jsonl").write_bytes(content[: len(content) - 20])
    assert run("plot", ppo_run, torn, "--out", tmp_path / "made" / "curves.svg") == 0
    assert b"<svg" in (tmp_path / "made" / "curves.svg").read_bytes()
    assert run("plot", torn) == 0
    assert (torn / "curves.png").stat().st_size > 10_000
    for bad in (content[:10], b'{"update": 0, "pe_return": [1.0]}\n'):
        (torn / "metrics.jsonl").write_bytes(bad)
        assert run("plot", torn) == 2
    assert run("plot", pg_run, "--out", tmp_path / "made" / "curves.svg" / "x.png") == 2
    (tmp_path / "d.png").mkdir()
    assert run("plot", pg_run, "--out", tmp_path / "d.png") == 2


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
def test_exported_policies_act_alike_in_a_process_without_this_package(name, request, tmp_path):
    trained, out = request.getfixturevalue(f"{name}_run"), tmp_path / "export"
    assert run("export", trained, "--out", out) == 0
    assert run("export", trained, "--out", out) == 2  # Not unasked.
    _, task, params = checkpoint.load_run(trained)
    keys = jax.random.split(jax.random.key(0), 7)
    space = task.world.env.observation_space(task.world.params)
    observations = jax.vmap(space.sample)(keys)
    np.save(tmp_path / "observations.npy", observations)
    (tmp_path / "elsewhere.py").write_text(ELSEWHERE)
    arguments = [sys.executable, "elsewhere.py", str(out), "observations.npy", "results.npz"]
    subprocess.run(arguments, cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": ""})
    heads = jax.tree.map(lambda x: x[1], params.heads)
    expected = jax.vmap(task.networks.distributions, (None, 0))(heads, observations)._asdict()
    got = np.load(tmp_path / "results.npz")
    assert set(got) == set(expected)
    for key, values in expected.items():
        np.testing.assert_allclose(got[key], values, rtol=1e-5, atol=1e-6)
    description = json.loads((out / export.DESCRIPTION).read_text())
    assert (description["seeds"], description["num_experts"]) == (2, 2)
    assert description["discrete_actions"] == (name == "pg")
    assert set(description["forward"]["results"]) == set(expected)
