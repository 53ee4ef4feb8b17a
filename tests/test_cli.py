"""The commands as a user gives them: in this process, with real files."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import PG, TASKS, run, signal_in_chunk

import ape_jax
from ape_jax import cli
from ape_jax.config import CHUNK, RunConfig, resolve
from ape_jax.runs import checkpoint, metrics
from ape_jax.training.trainer import EVALUATE, Trainer, seed_keys
from ape_jax.types import SettingError


def test_train_writes_a_run(pg_run):
    names = {path.name for path in pg_run.iterdir()}
    assert names == {"config.yaml", "metrics.jsonl", "summary.json", "checkpoints", ".lock"}
    summary = json.loads((pg_run / "summary.json").read_text())
    for name in ("pe_return", "mixture"):
        assert set(summary[name]) == {"mean", "std", "values"}
        assert len(summary[name]["values"]) == 2
    for name in ("expert_returns", "multipliers"):
        assert np.shape(summary[name]["values"]) == (2, 2)
    assert (summary["evaluation"], summary["min_return"]) == ("exact", -50.0)
    rows = [json.loads(line) for line in (pg_run / "metrics.jsonl").read_text().splitlines()]
    assert [row["update"] for row in rows] == list(range(8))
    assert np.shape(rows[0]["multipliers"]) == (2, 2)
    np.testing.assert_allclose(rows[0]["classifier_loss"], np.log(2), rtol=1e-5)
    config = RunConfig.load(pg_run / "config.yaml")
    assert (config.seeds, config.train.num_updates, config.hypers.min_return) == (2, 8, -50.0)


def test_run_says_who_keeps_the_return(pg_run):
    summary = json.loads((pg_run / "summary.json").read_text())
    printed = pg_run.with_suffix(".txt").read_text()
    for expert, values in enumerate(zip(*summary["expert_returns"]["values"], strict=True)):
        kept = sum(value >= -50.0 for value in values)
        shown = f"expert {expert + 1} in {kept} of 2 seed(s), lowest {min(values):.2f}"
        assert shown in printed.split("return of at least -50 kept by ")[1]


def test_saved_run_loads_with_the_parameters_of_its_fingerprint(pg_run):
    config, task, params = checkpoint.load_run(pg_run)
    summary = json.loads((pg_run / "summary.json").read_text())
    assert metrics.fingerprint(params) == summary["fingerprint"]
    assert params.heads["params"]["table"].shape == (2, 2, 100, 5)
    assert params.classifier["params"]["table"].shape == (2, 100, 2)
    assert task.world.horizon == 100
    assert config.seeds == 2


def test_run_repeats_from_its_own_configuration_file_and_flags_override_it(pg_run, tmp_path):
    config = pg_run / "config.yaml"
    assert run("train", "--config", config, "--out", tmp_path / "again", "--quiet") == 0
    assert (tmp_path / "again" / "metrics.jsonl").read_bytes() == (
        pg_run / "metrics.jsonl"
    ).read_bytes()
    out = tmp_path / "other"
    assert run("train", "--config", config, "--beta=0", "--out", out) == 0
    other = RunConfig.load(out / "config.yaml")
    assert (other.hypers.beta, other.train.num_updates) == (0.0, 8)


def test_train_does_not_replace_a_run_unasked(pg_run, capfd):
    before = (pg_run / "summary.json").read_bytes()
    assert run("train", *PG, "--out", pg_run) == 2
    assert "must not hold a run already" in capfd.readouterr().err
    assert (pg_run / "summary.json").read_bytes() == before


def test_configuration_of_a_ppo_run_is_what_the_flags_said(ppo_run):
    config = resolve(
        {
            "algorithm": "ppo",
            "env": "Pendulum-v1",
            "head": "gaussian",
            "hidden_sizes": (4,),
            "env_param": ("max_steps_in_episode=20", "g=9.5"),
            "observer": "learned",
            "constraint": "gate",
            "min_return": -200.0,
            "num_updates": 8,
            "envs_per_expert": 4,
            "rollout_length": 16,
            "num_epochs": 1,
            "num_minibatches": 2,
            "init_temperature": 0.5,
            "seeds": 2,
            "save_every": 2,
        }
    )
    assert RunConfig.load(ppo_run / "config.yaml") == config
    assert TASKS(config.train).world.params.g == 9.5


def test_ppo_run_is_written_whole(ppo_run):
    """A step costs at most 16.3; an expert is held by a gate, not by a multiplier."""
    summary = json.loads((ppo_run / "summary.json").read_text(), parse_constant=pytest.fail)
    assert summary["num_updates"] == 8
    assert np.shape(summary["expert_returns"]["values"]) == (2, 2)
    assert np.all(np.asarray(summary["expert_returns"]["values"]) >= -16.3 * 20)
    assert summary["evaluation"] == "1024 episodes a policy"
    assert -16.3 * 20 <= summary["random_return"] <= 0
    assert "multipliers" not in summary
    lines = (ppo_run / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert [row["update"] for row in rows] == list(range(8))
    for row in rows:
        assert np.shape(row["calibration_error"]) == np.shape(row["pe_return"]) == (2,)
        assert all(0 <= error <= 1 for error in row["calibration_error"])
        assert "multipliers" not in row
    # The classifier begins without a preference, which is right half of the time.
    np.testing.assert_allclose(rows[0]["calibration_error"], 0.0, atol=1e-5)
    _, _, params = checkpoint.load_run(ppo_run)
    assert metrics.fingerprint(params) == summary["fingerprint"]


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), ([], 2), (["fly"], 2)])
def test_commands_are_listed(arguments, code, capfd):
    assert run(*arguments) == code
    captured = capfd.readouterr()
    assert "reproduce" in captured.out + captured.err


def test_help_shows_the_defaults_of_the_recipe(capfd):
    assert run("train", "--help") == 0
    shown = " ".join(capfd.readouterr().out.replace("│", " ").split())
    assert "(default: 3000)" in shown
    assert "(default: runs/train)" in shown


def files_of(folder):
    return {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_interrupted_replacement_leaves_the_old_run_whole(pg_run, tmp_path, monkeypatch, capfd):
    """Ctrl-C before the first chunk of --overwrite is finished."""
    old = shutil.copytree(pg_run, tmp_path / "run")
    before = files_of(old)
    signal_in_chunk(monkeypatch, 0)
    assert run("train", *PG, "--beta", "0.5", "--out", old, "--overwrite") == cli.INTERRUPTED
    assert files_of(old) == before
    printed = capfd.readouterr().err
    assert "interrupted before anything was finished" in printed
    assert "--resume" not in printed


def test_replacement_leaves_nothing_of_the_old_run(pg_run, tmp_path):
    old = tmp_path / "run[/odd]"
    shutil.copytree(pg_run, old)
    assert run("train", *PG, "--beta", "0.9", "--out", old, "--overwrite") == 0
    config, _, params = checkpoint.load_run(str(old))
    summary = json.loads((old / "summary.json").read_text())
    assert config.hypers.beta == 0.9
    assert metrics.fingerprint(params) == summary["fingerprint"]
    assert len((old / "metrics.jsonl").read_text().splitlines()) == 8


def test_reproduce_does_not_write_into_a_training_run(pg_run, capfd):
    assert run("reproduce", "--quick", "--out", pg_run) == 2
    assert "out must not hold a training run" in capfd.readouterr().err


def test_version_is_printed(capfd):
    cli.main(["--version"])
    assert capfd.readouterr().out.strip() == ape_jax.__version__


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_a_real_process_cleanly(tmp_path, number, code):
    """To the command itself, once metrics have begun to appear: what it did is saved."""
    out = tmp_path / "run"
    arguments = ["train", "--num-updates", "10000000", "--envs-per-expert", "4", "--out", str(out)]
    # A shell that runs this suite in the background ignores SIGINT, and children inherit that.
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from ape_jax.cli import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    try:
        deadline = time.monotonic() + 120
        while len(_lines(out)) < 2 * CHUNK:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.2)
        process.send_signal(number)
        printed, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == code
    assert "Traceback" not in printed
    done = re.search(r"interrupted after (\d+) of 10000000 updates", " ".join(printed.split()))
    assert done
    assert f"ape-jax train --resume {out}" in printed.replace("\n", "")
    assert checkpoint.newest_sound(out) == int(done[1])
    # A chunk may have been written that was not counted yet; resuming computes it again.
    assert len(_lines(out)) - int(done[1]) in (0, CHUNK)


def _lines(out):
    path = out / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def test_load_run_says_what_is_missing(tmp_path):
    with pytest.raises(SettingError, match="run must be a directory that ape-jax train made"):
        checkpoint.load_run(tmp_path)


def test_keys_of_seeds_are_folds_of_them_by_purpose():
    found = seed_keys(2**31 - 2, 2, EVALUATE)
    expected = [jax.random.fold_in(jax.random.key(2**31 - 2 + i), EVALUATE) for i in range(2)]
    np.testing.assert_array_equal(*(jax.random.key_data(x) for x in (found, jnp.stack(expected))))


def test_seed_means_the_same_run_however_many_are_trained(pg_run):
    """Seed 6 alone, and beside seed 5. What a chunk leaves in memory, the next one replaces."""
    config, _, params = checkpoint.load_run(pg_run)
    trainer, num_arrays = Trainer(TASKS(config.train)), []
    for chunk in trainer.chunks(seed_keys(6, 1), config.hypers, chunk=2):
        alone = chunk.state.params
        num_arrays.append(len(jax.live_arrays()))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x[1], y[0], rtol=1e-5, atol=1e-6),
        params,
        alone,
    )
    assert max(num_arrays[2:]) <= num_arrays[1] + 2
