"""The commands as a user gives them: in this process, with real files."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from command_line import run

import ape_jax
from ape_jax import cli, presets
from ape_jax.algorithms.task import make_task
from ape_jax.config import CHUNK, RunConfig, recipe
from ape_jax.runs import checkpoint, metrics
from ape_jax.training.trainer import Trainer
from ape_jax.types import SettingError

SMALL = ["--num-updates", "4", "--envs-per-expert", "4", "--seeds", "2"]


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "small"
    assert run("train", *SMALL, "--beta", "0.5", "--out", out) == 0
    return out


def test_train_writes_a_run(small_run):
    names = {path.name for path in small_run.iterdir()}
    assert names == {"config.yaml", "metrics.jsonl", "summary.json", "checkpoints", ".lock"}
    summary = json.loads((small_run / "summary.json").read_text())
    for name in ("pe_return", "mixture"):
        assert set(summary[name]) == {"mean", "std", "values"}
        assert len(summary[name]["values"]) == 2
    assert np.shape(summary["expert_returns"]["values"]) == (2, 2)
    assert summary["evaluation"] == "exact"
    lines = (small_run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["update"] for line in lines] == [0, 1, 2, 3]
    config = RunConfig.load(small_run / "config.yaml")
    assert (config.seeds, config.train.num_updates, config.hypers.beta) == (2, 4, 0.5)


def test_saved_run_loads_with_the_parameters_of_its_fingerprint(small_run):
    config, task, params = checkpoint.load_run(small_run)
    summary = json.loads((small_run / "summary.json").read_text())
    assert metrics.fingerprint(params) == summary["fingerprint"]
    assert params.heads["params"]["table"].shape == (2, 2, 100, 5)
    assert task.world.horizon == 100
    assert config.seeds == 2


def test_run_repeats_from_its_own_configuration_file(small_run, tmp_path):
    assert run("train", "--config", small_run / "config.yaml", "--out", tmp_path / "again") == 0
    first, again = (
        json.loads((path / "summary.json").read_text()) for path in (small_run, tmp_path / "again")
    )
    assert first["fingerprint"] == again["fingerprint"]


def test_flags_override_the_configuration_file(small_run, tmp_path):
    out = tmp_path / "other"
    assert run("train", "--config", small_run / "config.yaml", "--beta=0", "--out", out) == 0
    assert RunConfig.load(out / "config.yaml").hypers.beta == 0.0
    assert RunConfig.load(out / "config.yaml").train.num_updates == 4


def test_train_does_not_replace_a_run_unasked(small_run, capfd):
    before = (small_run / "summary.json").read_bytes()
    assert run("train", *SMALL, "--out", small_run) == 2
    assert "must not hold a run already" in capfd.readouterr().err
    assert (small_run / "summary.json").read_bytes() == before


def test_train_on_an_environment_without_an_exact_evaluation(tmp_path):
    arguments = ["--env", "Catch-bsuite", "--head", "mlp", "--hidden-sizes", "8"]
    arguments += ["--env-param", "max_steps_in_episode=20"]
    assert run("train", *arguments, *SMALL, "--out", tmp_path / "catch") == 0
    summary = json.loads((tmp_path / "catch" / "summary.json").read_text())
    assert summary["evaluation"] == "1024 episodes a policy"
    assert all(-1 <= value <= 1 for value in summary["pe_return"]["values"])


PPO = ["--algorithm", "ppo"]


@pytest.fixture(scope="module")
def ppo_run(tmp_path_factory):
    """Everything that the policy gradient does not have."""
    out = tmp_path_factory.mktemp("runs") / "ppo"
    arguments = [*PPO, "--env", "CartPole-v1", "--head", "mlp", "--hidden-sizes", "4"]
    arguments += ["--env-param", "max_steps_in_episode=20", "--env-param", "gravity=9.5"]
    arguments += ["--observer", "learned", "--constraint", "gate", "--min-return", "12"]
    arguments += ["--num-updates", "2", "--envs-per-expert", "4", "--rollout-length", "16"]
    arguments += ["--num-epochs", "1", "--num-minibatches", "2", "--init-temperature", "0.5"]
    assert run("train", *arguments, "--seeds", "2", "--out", out) == 0
    return out


def test_configuration_of_a_ppo_run_is_what_the_flags_said(ppo_run):
    train, hypers = recipe("mlp", 12.0, "ppo")
    train = dataclasses.replace(
        train,
        env="CartPole-v1",
        env_param=("max_steps_in_episode=20", "gravity=9.5"),
        algorithm="ppo",
        hidden_sizes=(4,),
        observer="learned",
        constraint="gate",
        num_updates=2,
        envs_per_expert=4,
        rollout_length=16,
        num_epochs=1,
        num_minibatches=2,
    )
    config = RunConfig(train, hypers.replace(init_temperature=0.5), seeds=2)
    assert RunConfig.load(ppo_run / "config.yaml") == config
    assert make_task(config.train).world.params.gravity == 9.5


def test_ppo_run_is_written_whole(ppo_run):
    """Episodes have 20 steps at most; an expert is held by a gate, not by a multiplier."""
    summary = json.loads((ppo_run / "summary.json").read_text(), parse_constant=pytest.fail)
    assert summary["num_updates"] == 2
    assert np.shape(summary["expert_returns"]["values"]) == (2, 2)
    assert np.all(np.asarray(summary["expert_returns"]["values"]) <= 20)
    assert summary["evaluation"] == "1024 episodes a policy"
    assert 5 <= summary["random_return"] <= 20
    assert "multipliers" not in summary
    lines = (ppo_run / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert [row["update"] for row in rows] == [0, 1]
    for row in rows:
        assert np.shape(row["calibration_error"]) == np.shape(row["pe_return"]) == (2,)
        assert all(0 <= error <= 1 for error in row["calibration_error"])
        assert "multipliers" not in row
    # The classifier begins without a preference, which is right half of the time.
    np.testing.assert_allclose(rows[0]["calibration_error"], 0.0, atol=1e-5)
    _, _, params = checkpoint.load_run(ppo_run)
    assert metrics.fingerprint(params) == summary["fingerprint"]


def test_flags_override_a_preset(tmp_path, monkeypatch):
    train, hypers = recipe("tabular")
    preset = presets.Preset(
        dataclasses.replace(train, num_updates=7, envs_per_expert=4), hypers.replace(beta=0.9)
    )
    monkeypatch.setattr(presets, "PRESETS", {"tiny": preset})
    out = tmp_path / "run"
    assert run("train", "--preset", "tiny", "--beta", "0.1", "--num-updates=1", "--out", out) == 0
    config = RunConfig.load(out / "config.yaml")
    assert config.train == dataclasses.replace(preset.train, num_updates=1)
    assert config.hypers == hypers.replace(beta=0.1)


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), ([], 2), (["fly"], 2)])
def test_commands_are_listed(arguments, code, capfd):
    assert run(*arguments) == code
    captured = capfd.readouterr()
    assert "reproduce" in captured.out + captured.err


@pytest.mark.parametrize(
    ("head", "words"), [("tabular", "(default: 3000)"), ("mlp", "(default: 4000)")]
)
def test_help_shows_the_recipe_of_the_head(head, words, capfd):
    assert run("train", "--head", head, "--help") == 0
    assert words in " ".join(capfd.readouterr().out.replace("│", " ").split())


def test_flag_of_the_head_chooses_the_recipe_that_a_file_leaves_open(tmp_path):
    (tmp_path / "some.yaml").write_text("seeds: 2\nbeta: 0.5\n")
    arguments = ["train", "--config", str(tmp_path / "some.yaml"), "--head", "tabular"]
    options = cli._parse([*arguments, "--head", "mlp"])[1]
    train, hypers = recipe("mlp")
    assert (options.settings, options.hypers) == (train, hypers.replace(beta=0.5))
    assert options.seeds == 2


def test_recipe_of_the_constraint_comes_before_the_file_and_the_file_before_flags(tmp_path):
    train, hypers = recipe("tabular", -12.0)
    options = cli._parse(["train", "--min-return", "-12"])[1]
    assert (options.settings, options.hypers) == (train, hypers)
    (tmp_path / "some.yaml").write_text("min_return: -11\nfinal_rate_share: 0.5\n")
    arguments = ["train", "--config", str(tmp_path / "some.yaml")]
    options = cli._parse(arguments)[1]
    expected = hypers.replace(min_return=-11.0, lr_end_fraction=0.5)
    assert (options.settings, options.hypers) == (train, expected)
    options = cli._parse([*arguments, "--min-return=-12", "--num-updates", "7"])[1]
    assert options.hypers == expected.replace(min_return=-12.0)
    assert options.settings.num_updates == 7


def test_constrained_run_is_saved_and_says_who_keeps_the_return(tmp_path, capfd):
    """Every gridworld return is at least −100, and none of four updates' is −10."""
    out = tmp_path / "run"
    for min_return, kept in (("-101", 2), ("-10", 0)):
        assert run("train", *SMALL, "--min-return", min_return, "--out", out, "--overwrite") == 0
        printed = " ".join(capfd.readouterr().out.split())
        assert f"return of at least {min_return} kept by expert 1 in {kept} of 2 seed(s)" in printed
        assert f"expert 2 in {kept} of 2 seed(s), lowest -" in printed
    summary = json.loads((out / "summary.json").read_text())
    assert summary["min_return"] == -10.0
    assert np.shape(summary["multipliers"]["values"]) == (2, 2)
    row = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    assert np.shape(row["multipliers"]) == (2, 2)
    assert "classifier_loss" not in row
    config, _, params = checkpoint.load_run(out)
    assert config.hypers.min_return == -10.0
    assert metrics.fingerprint(params) == summary["fingerprint"]


def test_run_with_learned_weights_loads(tmp_path):
    out = tmp_path / "run"
    assert run("train", *SMALL, "--observer", "learned", "--out", out) == 0
    summary = json.loads((out / "summary.json").read_text())
    _, _, params = checkpoint.load_run(out)
    assert metrics.fingerprint(params) == summary["fingerprint"]
    assert params.classifier["params"]["table"].shape == (2, 100, 2)
    row = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    np.testing.assert_allclose(row["classifier_loss"], np.log(2), rtol=1e-5)
    assert "multipliers" not in row


def test_interrupted_replacement_leaves_the_old_run_whole(small_run, tmp_path, monkeypatch, capfd):
    """Ctrl-C before the first chunk of --overwrite: nothing of the old run is touched."""
    old = tmp_path / "run"
    shutil.copytree(small_run, old)
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}

    def interrupted(self, *arguments):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(Trainer, "chunks", interrupted)
    assert run("train", *SMALL, "--beta", "0.9", "--out", old, "--overwrite") == cli.INTERRUPTED
    after = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    assert {path: content for path, content in after.items() if path.name != ".lock"} == {
        path: content for path, content in before.items() if path.name != ".lock"
    }
    assert "interrupted before anything was finished" in capfd.readouterr().err


def test_replacement_leaves_nothing_of_the_old_run(small_run, tmp_path):
    old = tmp_path / "run[/odd]"
    shutil.copytree(small_run, old)
    assert run("train", *SMALL, "--beta", "0.9", "--out", old, "--overwrite") == 0
    config, _, params = checkpoint.load_run(str(old))
    summary = json.loads((old / "summary.json").read_text())
    assert config.hypers.beta == 0.9
    assert metrics.fingerprint(params) == summary["fingerprint"]
    assert len((old / "metrics.jsonl").read_text().splitlines()) == 4


def test_reproduce_does_not_write_into_a_training_run(small_run, capfd):
    assert run("reproduce", "--quick", "--out", small_run) == 2
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
    told = re.search(r"interrupted after (\d+) of 10000000 updates", " ".join(printed.split()))
    assert told
    assert f"ape-jax train --resume {out}" in printed.replace("\n", "")
    assert checkpoint.newest_sound(out) == int(told[1])
    # A chunk may have been written that was not counted yet; resuming computes it again.
    assert len(_lines(out)) - int(told[1]) in (0, CHUNK)


def _lines(out):
    path = out / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def test_load_run_says_what_is_missing(tmp_path):
    with pytest.raises(SettingError, match="run must be a directory that ape-jax train made"):
        checkpoint.load_run(tmp_path)


def test_seed_means_the_same_run_however_many_are_trained(small_task, hypers):
    from ape_jax.training.trainer import seed_keys

    runner = Trainer(small_task)
    two = list(runner.chunks(seed_keys(5, 2), hypers))[-1].state.params
    one = list(runner.chunks(seed_keys(6, 1), hypers))[-1].state.params
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x[1], y[0], rtol=1e-5, atol=1e-6), two, one
    )
