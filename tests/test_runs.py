"""Runs that are stopped, damaged or disturbed, and gone on with."""

import dataclasses
import errno
import functools
import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import run

from ape_jax.algorithms.common import Metrics
from ape_jax.algorithms.task import make_task
from ape_jax.cli import train
from ape_jax.config import PGHypers, PPOConfig, RunConfig
from ape_jax.runs import checkpoint, loop, metrics
from ape_jax.runs.directory import RunDirectory
from ape_jax.training import guards
from ape_jax.training.trainer import Trainer
from ape_jax.types import DamagedError, NonFiniteError, SettingError
from benchmarks import survival

PG = ["--num-updates", "8", "--envs-per-expert", "4", "--seeds", "2", "--observer", "learned"]
PG += ["--min-return", "-50"]
PPO = ["--algorithm", "ppo", "--env", "Pendulum-v1", "--head", "gaussian", "--hidden-sizes", "4"]
PPO += ["--envs-per-expert", "4", "--rollout-length", "16", "--num-epochs", "1", "--seeds", "2"]
PPO += ["--num-minibatches", "2", "--num-updates", "8", "--env-param", "max_steps_in_episode=20"]
PPO += ["--min-return", "-200"]
EVERY = ["--save-every", "2", "--quiet"]


TASKS = functools.cache(make_task)


@pytest.fixture(autouse=True)
def one_task_of_a_kind(monkeypatch):
    """So that trainings of the same settings share what they compile."""
    monkeypatch.setattr(train, "make_task", TASKS)


def stop_after(monkeypatch, num_chunks, error=KeyboardInterrupt):
    """Let so many chunks of every training pass, then fail."""
    chunks = Trainer.chunks

    def stopped(self, *arguments):
        for count, chunk in enumerate(chunks(self, *arguments)):
            if count == num_chunks:
                raise error
            yield chunk

    monkeypatch.setattr(Trainer, "chunks", stopped)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Undisturbed runs of both algorithms."""
    runs = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "make_task", TASKS)
        for name, arguments in (("pg", PG), ("ppo", PPO)):
            runs[name] = tmp_path_factory.mktemp("whole") / name
            assert run("train", *arguments, *EVERY, "--out", runs[name]) == 0
    return runs


@pytest.fixture
def stopped(whole, tmp_path, monkeypatch, capfd):
    """A run of the policy gradient, interrupted after six of eight updates."""
    out = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert run("train", *PG, *EVERY, "--out", out) == 130
    capfd.readouterr()
    return out


def results(out):
    """Everything that a run should end with but for the seconds that it took."""
    summary = json.loads((out / "summary.json").read_text())
    summary.pop("train_seconds")
    return summary, (out / "metrics.jsonl").read_bytes(), (out / "config.yaml").read_bytes()


@pytest.mark.parametrize("name", ["pg", "ppo"])
def test_resumed_run_is_the_uninterrupted_one_to_the_bit(name, whole, tmp_path, monkeypatch, capfd):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert run("train", *{"pg": PG, "ppo": PPO}[name], *EVERY, "--out", out) == 130
    printed = capfd.readouterr().err
    assert "interrupted after 4 of 8 updates" in " ".join(printed.split())
    assert f"ape-jax train --resume {out}" in printed.replace("\n", "")
    assert checkpoint.saved_updates(out) == [2, 4]
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        assert run("train", "--resume", out) == 130
    assert checkpoint.newest_sound(out) == 6
    assert run("train", "--resume", out) == 0
    assert results(out) == results(whole[name])
    assert run("train", "--resume", out) == 0
    assert "is finished, after 8 updates" in " ".join(capfd.readouterr().out.split())


def test_how_often_a_run_is_saved_does_not_change_it(whole, tmp_path):
    out = tmp_path / "seldom"
    assert run("train", *PG, "--out", out) == 0
    assert checkpoint.saved_updates(out) == [8]
    assert results(out)[:2] == results(whole["pg"])[:2]


def test_run_stopped_before_its_first_checkpoint_begins_again(whole, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, 0)
        assert run("train", *PG, *EVERY, "--out", out) == 130
    assert checkpoint.saved_updates(out) == []
    assert run("train", "--resume", out) == 0
    assert results(out) == results(whole["pg"])


def test_run_killed_before_its_evaluation_is_only_evaluated(whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole["pg"], out)
    (out / "summary.json").unlink()
    shutil.rmtree(checkpoint.folder_of(out) / "final")
    assert run("train", "--resume", out) == 0
    assert results(out) == results(whole["pg"])


def test_interrupt_of_the_evaluation_loses_no_training(whole, tmp_path, monkeypatch, capfd):
    def interrupted(*_):
        raise KeyboardInterrupt

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(train, "_evaluate", interrupted)
        assert run("train", *PG, *EVERY, "--out", out) == 130
    assert "interrupted after 8 of 8 updates" in " ".join(capfd.readouterr().err.split())
    assert run("train", "--resume", out) == 0
    assert results(out) == results(whole["pg"])


def test_newest_checkpoints_and_the_best_are_kept(whole, tmp_path):
    kept = checkpoint.saved_updates(whole["pg"])
    assert kept[-3:] == [4, 6, 8]
    out = tmp_path / "run"
    assert run("train", *PG, *EVERY, "--keep", "1", "--out", out) == 0
    scores = {}
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for update in (2, 4, 6, 8):
        worst = np.mean(
            [np.min(row["expert_returns"], axis=-1) for row in rows[update - 2 : update]]
        )
        observer = np.mean([row["observer_return"] for row in rows[update - 2 : update]])
        scores[update] = [min(0.0, worst + 50.0), -observer]
    assert checkpoint.saved_updates(out) == sorted({8, max(scores, key=scores.get)})


def test_best_is_the_objective_where_nothing_is_to_be_kept():
    fields = dict.fromkeys(Metrics._fields, np.zeros((2, 3)))
    fields["expert_returns"] = np.zeros((2, 3, 2))
    fields |= {"pe_return": np.full((2, 3), 5.0), "observer_return": np.full((2, 3), 4.0)}
    config = RunConfig(hypers=PGHypers(beta=0.5))
    assert loop.score_of(Metrics(**fields), config) == [0.0, 3.0]
    # Without an observer its return is never known, and no part of the objective.
    alone = dataclasses.replace(config, train=PPOConfig(head="mlp", observer="none"))
    fields["observer_return"] = np.full((2, 3), np.nan)
    assert loop.score_of(Metrics(**fields), alone) == [0.0, 5.0]
    assert loop.score_of(Metrics(**fields), config) == []


@pytest.mark.parametrize("min_return", [None, -100.0])
def test_what_is_not_known_yet_is_never_the_best(min_return):
    """Where all returns are below zero, too: a chunk without an ended episode is the least."""
    config = RunConfig(hypers=PGHypers(beta=0.5, min_return=min_return))

    def score(first, second):
        """Two updates, of a seed and two experts; the observer gets as much."""
        returns = np.array([[first, second]])
        fields = dict.fromkeys(Metrics._fields, np.zeros((1, 2)))
        fields |= {"pe_return": returns, "observer_return": returns}
        fields["expert_returns"] = np.stack([returns, returns], axis=-1)
        return loop.score_of(Metrics(**fields), config)

    assert score(np.nan, np.nan) < score(-300.0, -300.0)
    assert score(np.nan, -200.0) == score(-200.0, -200.0)


@pytest.mark.parametrize("how", ["cut", "flipped", "removed"])
def test_every_damaged_file_is_named_and_the_newest_sound_checkpoint_taken(
    how, whole, stopped, tmp_path, capfd
):
    """One file after the other of the newest checkpoint; never a silent wrong load."""
    newest = checkpoint.path_of(stopped, 6)
    files = sorted(path.relative_to(newest) for path in newest.rglob("*") if path.is_file())
    assert len(files) > 5
    config = RunConfig.load(stopped / "config.yaml")
    task = make_task(config.train)
    for file in files:
        copy = tmp_path / "copy"
        shutil.copytree(stopped, copy)
        path = checkpoint.path_of(copy, 6) / file
        content = bytearray(path.read_bytes())
        if not content and how != "removed":  # Orbax marks its folders with an empty file.
            shutil.rmtree(copy)
            continue
        if how == "removed":
            path.unlink()
        elif how == "cut":
            path.write_bytes(content[: len(content) // 2])
        else:
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        directory = RunDirectory(copy)
        num_done, state, _ = directory.go_on(config, task)
        directory.release()
        assert num_done == 4, file
        assert state is not None
        warned = capfd.readouterr().err.replace("\n", "").replace(" ", "")
        assert str(path).replace(" ", "") in warned
        assert str(checkpoint.path_of(copy, 4)) in warned
        assert checkpoint.saved_updates(copy) == [2, 4]
        shutil.rmtree(copy)


def test_resumed_from_an_older_checkpoint_a_run_ends_the_same(whole, stopped):
    (checkpoint.path_of(stopped, 6) / "manifest.json").write_text("{}")
    assert run("train", "--resume", stopped) == 0
    assert results(stopped) == results(whole["pg"])


def test_run_without_a_sound_checkpoint_is_refused(stopped, capfd):
    for update in checkpoint.saved_updates(stopped):
        (checkpoint.path_of(stopped, update) / "manifest.json").unlink()
    before = (stopped / "metrics.jsonl").read_bytes()
    assert run("train", "--resume", stopped) == 2
    printed = " ".join(capfd.readouterr().err.split())
    assert "resume needs a sound checkpoint, and none is" in printed
    assert "Train anew with --overwrite" in printed
    assert (stopped / "metrics.jsonl").read_bytes() == before


def test_metrics_that_are_damaged_are_not_gone_on_with(stopped, capfd):
    path = stopped / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b"0", b"1", 1))
    assert run("train", "--resume", stopped) == 2
    printed = " ".join(capfd.readouterr().err.split())
    assert "metrics.jsonl does not hold the updates before the checkpoint as they were" in printed


def test_metrics_that_end_early_take_an_older_checkpoint(whole, stopped, capfd):
    """As when a machine went down before all of them were on its disk."""
    path = stopped / "metrics.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:5]))
    assert run("train", "--resume", stopped) == 0
    assert "going on from the newest sound checkpoint" in " ".join(capfd.readouterr().err.split())
    assert results(stopped) == results(whole["pg"])


@pytest.mark.parametrize("content", ["", "beta: 0.5\n"])
def test_configuration_that_lost_settings_is_refused(stopped, content, capfd):
    (stopped / "config.yaml").write_text(content)
    assert run("train", "--resume", stopped) == 2
    assert "config" in capfd.readouterr().err
    assert (stopped / "config.yaml").read_text() == content


def test_finished_run_whose_parameters_are_damaged_is_mended(whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole["pg"], out)
    (checkpoint.folder_of(out) / "final" / "manifest.json").unlink()
    assert run("train", "--resume", out) == 0
    checkpoint.load_run(out)
    assert results(out) == results(whole["pg"])


def test_names_that_are_patterns_elsewhere_hold_runs(whole, tmp_path, monkeypatch):
    out = tmp_path / "a [b] * $x"
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert run("train", *PG, *EVERY, "--out", out) == 130
    assert run("train", "--resume", out) == 0
    checkpoint.load_run(out)
    assert results(out) == results(whole["pg"])


@pytest.mark.slow
def test_files_that_cannot_grow_stop_the_run_with_one_message(tmp_path):
    """A real limit, which the checkpoints of an MLP do not fit in."""
    out = tmp_path / "run"
    program = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from ape_jax import cli, training_loop; train = loop.RunDirectory.begin;"
        "limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000));"
        "training_loop.RunDirectory.begin = lambda *x: (train(*x), limit())[0];"
        "cli.main()"
    )
    arguments = ["train", "--head", "mlp", "--num-updates", "40", "--envs-per-expert", "4"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments, "--save-every", "20", "--out", str(out)],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"},
    )
    assert done.returncode == 1
    printed = " ".join(done.stderr.split())
    assert "checkpoint not saved" in printed
    assert "error:" in printed
    assert "cannot be written" in printed
    assert not list(checkpoint.folder_of(out).glob("*"))
    assert len(metrics.read_updates(out / "metrics.jsonl")) == 40


def test_configuration_that_was_changed_is_told_apart_from_damage(stopped, capfd):
    path = stopped / "config.yaml"
    path.write_text(path.read_text().replace("min_return: -50.0", "min_return: -40.0"))
    assert run("train", "--resume", stopped) == 2
    printed = " ".join(capfd.readouterr().err.split())
    assert "was saved with min_return -50.0, and config.yaml says -40.0" in printed


def test_checkpoint_of_other_shapes_is_refused_before_it_is_used(stopped, tmp_path):
    config = RunConfig.load(stopped / "config.yaml")
    wider = make_task(dataclasses.replace(config.train, num_experts=3))
    with pytest.raises(DamagedError, match=r"is float32\[2, 2\], needed is float32\[2, 3\]"):
        checkpoint.load_state(stopped, config, wider, 6)


def test_checkpoint_of_a_later_schema_is_refused(stopped, monkeypatch):
    monkeypatch.setattr(checkpoint, "SCHEMA", 0)
    with pytest.raises(DamagedError, match="is of schema 1, by ape_jax"):
        checkpoint.verify(checkpoint.path_of(stopped, 6))


def test_damaged_final_parameters_are_named(whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole["pg"], out)
    (checkpoint.folder_of(out) / "final" / "manifest.json").unlink()
    with pytest.raises(SettingError, match=r"final/manifest\.json is missing.*--resume"):
        checkpoint.load_run(out)


def test_unfinished_run_is_named(stopped):
    with pytest.raises(SettingError, match=r"run must be finished.*--resume"):
        checkpoint.load_run(stopped)


def test_keys_come_back_as_keys(tmp_path):
    tree = {"key": jax.random.split(jax.random.key(3), 2), "x": (jnp.arange(3), jnp.array(True))}
    checkpoint.write(tmp_path / "x", checkpoint.named(tree), {"some": "thing"})
    read, manifest = checkpoint.read(tmp_path / "x", lambda: tree)
    assert jax.tree.all(jax.tree.map(lambda a, b: jnp.all(a == b), read, tree))
    assert manifest["some"] == "thing"
    checkpoint.write(tmp_path / "x", checkpoint.named(tree), {})
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_disk_that_is_full_for_checkpoints_does_not_stop_the_training(
    whole, tmp_path, monkeypatch, capfd
):
    write, failed = checkpoint.write, []

    def full(path, tree, about):
        if path.name.endswith("4"):
            failed.append(path.name)
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, tree, about)

    monkeypatch.setattr(checkpoint, "write", full)
    out = tmp_path / "run"
    assert run("train", *PG, *EVERY, "--out", out) == 0
    assert failed
    assert "checkpoint not saved: [Errno 28]" in " ".join(capfd.readouterr().err.split())
    assert checkpoint.saved_updates(out) == [2, 6, 8]
    assert results(out) == results(whole["pg"])


@pytest.mark.parametrize("which", ["metrics", "summary"])
def test_disk_that_is_full_stops_the_run_with_a_message(which, whole, tmp_path, monkeypatch, capfd):
    """What was saved stays, and the run ends as it would have once there is room."""
    out = tmp_path / "run"
    append = metrics.MetricsFile.append

    def full(self, chunk, first=None):
        if which == "summary" or first == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, chunk, first)

    with monkeypatch.context() as patch:
        if which == "metrics":
            patch.setattr(metrics.MetricsFile, "append", full)
        else:
            patch.setattr(metrics, "write_json", full)
        assert run("train", *PG, *EVERY, "--out", out) == 1
    printed = capfd.readouterr().err
    assert "No space left on device" in printed
    assert "Traceback" not in printed
    assert f"ape-jax train --resume {out}" in printed.replace("\n", "")
    assert run("train", "--resume", out) == 0
    assert results(out) == results(whole["pg"])


def test_losses_that_are_not_finite_stop_the_run_at_their_update(whole, tmp_path, capfd):
    """A rate so large that parameters overflow; nothing of it is saved."""
    out = tmp_path / "run"
    arguments = ["--num-updates", "8", "--envs-per-expert", "4", "--learning-rate", "3e38"]
    assert run("train", *arguments, *EVERY, "--out", out) == 1
    printed = " ".join(capfd.readouterr().err.split())
    assert "not finite" in printed
    assert "No checkpoint was saved before it" in printed
    assert not checkpoint.saved_updates(out)


def test_guard_names_the_first_term_and_update():
    fields = dict.fromkeys(Metrics._fields, np.zeros((2, 3)))
    fields |= {"expert_returns": np.full((2, 3, 2), np.nan), "multipliers": np.zeros((2, 3, 2))}
    bad = np.zeros((2, 3))
    bad[1, 1:] = np.nan
    fields |= {"value_loss": bad, "grad_norm": bad * np.array([1, 0, 1])}
    with pytest.raises(NonFiniteError, match=r"value_loss is not finite at update 11 \(seed.* 1"):
        guards.check(Metrics(**fields), None, 10)


def test_last_good_checkpoint_is_named(stopped):
    directory = RunDirectory(stopped)
    assert "00000006, after 6 updates" in loop._last_good(directory)
    directory.release()


def test_operation_that_makes_a_nan_is_named(tmp_path, capfd):
    arguments = ["--num-updates", "4", "--envs-per-expert", "4", "--learning-rate", "3e38"]
    assert run("train", *arguments, "--debug-nans", "--out", tmp_path / "run") == 1
    printed = " ".join(capfd.readouterr().err.split())
    assert "nan generated by primitive" in printed
    assert "(update " in printed


def test_checks_for_nans_change_nothing(whole, tmp_path):
    """And find none in a sound run, where returns are not known yet."""
    for name, arguments in (("pg", PG), ("ppo", PPO)):
        out = tmp_path / name
        assert run("train", *arguments, "--debug-nans", "--quiet", "--out", out) == 0
        got, expected = (metrics.read_updates(x / "metrics.jsonl") for x in (out, whole[name]))
        for row, other in zip(got, expected, strict=True):
            np.testing.assert_allclose(
                row["policy_loss"], other["policy_loss"], rtol=1e-3, atol=1e-5
            )


def test_two_runs_cannot_write_to_one_directory(stopped, capfd):
    other = RunDirectory(stopped)
    assert run("train", "--resume", stopped) == 2
    assert "out must not be in use" in " ".join(capfd.readouterr().err.split())
    other.release()
    assert run("train", "--resume", stopped) == 0


def test_run_that_came_and_went_meanwhile_is_not_replaced(whole, tmp_path, monkeypatch, capfd):
    """Of two that start at once the second waits to write, and then finds a run."""
    out, make = tmp_path / "run", train.make_task

    def slow(config):
        shutil.copytree(whole["pg"], out, dirs_exist_ok=True)
        return make(config)

    monkeypatch.setattr(train, "make_task", slow)
    assert run("train", *PG, *EVERY, "--out", out) == 2
    assert "out must not hold a run already" in " ".join(capfd.readouterr().err.split())
    assert results(out) == results(whole["pg"])


def test_handlers_of_signals_are_put_back(stopped):
    before = signal.getsignal(signal.SIGTERM)
    assert run("train", "--resume", stopped) == 0
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_run_that_is_killed_again_and_again_ends_as_if_it_never_was():
    result = survival.measure(kills=3, num_updates=2000)
    assert result["same_parameters"]
    assert result["same_metrics"]
    assert len(result["rows"]) == 3
    # The chunk that was being saved, and the one that was being computed.
    assert result["most_updates_lost"] <= 2 * survival.SAVE_EVERY
