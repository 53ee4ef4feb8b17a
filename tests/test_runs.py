"""Runs that are stopped, damaged or disturbed, and resumed."""

import dataclasses
import errno
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
from command_line import PG, PPO, TASKS, run, signal_in_chunk

from ape_jax.algorithms.common import Metrics
from ape_jax.cli import train
from ape_jax.config import RunConfig
from ape_jax.runs import checkpoint, directory, loop, manifest, metrics
from ape_jax.runs.directory import Output, RunDirectory, find_start
from ape_jax.training import guards
from ape_jax.types import DamagedError, NonFiniteError, SettingError
from benchmarks import survival


def printed(capfd):
    return " ".join(capfd.readouterr().err.split())


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory):
    """A run of the policy gradient that was interrupted after six of eight updates."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        signal_in_chunk(patch, 2)
        assert run("train", *PG, "--out", out) == 130
    return out


@pytest.fixture
def stopped(stopped_once, tmp_path):
    """A copy of the interrupted run, to be changed."""
    return shutil.copytree(stopped_once, tmp_path / "stopped")


@pytest.fixture
def finished(pg_run, tmp_path):
    """A copy of the undisturbed run, to be changed."""
    return shutil.copytree(pg_run, tmp_path / "finished")


def settings_of(out):
    config = RunConfig.load(out / "config.yaml")
    return config, TASKS(config.train)


def results(out):
    """Everything with which a run ends, except the seconds that it took."""
    summary = json.loads((out / "summary.json").read_text())
    summary.pop("train_seconds")
    return summary, (out / "metrics.jsonl").read_bytes(), (out / "config.yaml").read_bytes()


@pytest.mark.parametrize(
    ("name", "number", "code"), [("pg", signal.SIGINT, 130), ("ppo", signal.SIGTERM, 143)]
)
def test_resumed_run_is_the_uninterrupted_one_to_the_bit(
    name, number, code, request, tmp_path, monkeypatch, capfd
):
    whole = request.getfixturevalue(f"{name}_run")
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_in_chunk(patch, 1, number)
        arguments = {"pg": PG, "ppo": PPO}[name]
        assert run("train", *arguments, "--out", out) == code
        message = capfd.readouterr().err.replace("\n", "")
        assert "4 of 8 updates" in message
        assert f"ape-jax train --resume {out}" in message
        assert checkpoint.saved_updates(out) == [2, 4]
        signal_in_chunk(patch, 0)  # Nothing new is finished yet: the process ends at once.
        assert run("train", "--resume", out) == 130
        assert checkpoint.newest_sound(out) == 4
        signal_in_chunk(patch, 1)
        assert run("train", "--resume", out) == 130
        assert checkpoint.newest_sound(out) == 8
    assert run("train", "--resume", out) == 0
    assert results(out) == results(whole)
    assert run("train", "--resume", out) == 0
    assert "is finished, after 8 updates" in " ".join(capfd.readouterr().out.split())


def test_how_often_a_run_is_saved_does_not_change_it(pg_run, tmp_path):
    out = tmp_path / "seldom"
    assert run("train", *PG, "--save-every", "8", "--out", out) == 0
    assert checkpoint.saved_updates(out) == [8]
    assert results(out)[:2] == results(pg_run)[:2]


def test_run_stopped_before_its_first_checkpoint_starts_again(pg_run, tmp_path, monkeypatch, capfd):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_in_chunk(patch, 0)
        assert run("train", *PG, "--out", out) == 130
    assert "before anything was finished" in printed(capfd)
    assert checkpoint.saved_updates(out) == []
    assert run("train", "--resume", out) == 0
    assert results(out) == results(pg_run)


def test_run_killed_before_its_evaluation_is_only_evaluated(pg_run, finished):
    (finished / "summary.json").unlink()
    shutil.rmtree(checkpoint.folder_of(finished) / "final")
    assert run("train", "--resume", finished) == 0
    assert results(finished) == results(pg_run)


def test_signal_in_the_evaluation_loses_no_training(pg_run, tmp_path, monkeypatch, capfd):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(train, "summarise", lambda *_: signal.raise_signal(signal.SIGTERM))
        assert run("train", *PG, "--out", out) == 143
    assert "8 of 8 updates" in printed(capfd)
    assert run("train", "--resume", out) == 0
    assert results(out) == results(pg_run)


def test_signals_are_only_noted_while_a_chunk_is_finished_and_saved():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with loop.stop_requested() as stop:
        stop.at_once = False
        assert not stop
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop
        with pytest.raises(loop.Interrupted) as error:
            stop.obey()
    assert error.value.exit_code == 143
    with pytest.raises(loop.Interrupted), loop.stop_requested():
        signal.raise_signal(signal.SIGINT)
    assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))


def test_every_damaged_file_of_a_checkpoint_is_named(stopped):
    newest = checkpoint.path_of(stopped, 6)
    files = [path for path in newest.rglob("*") if path.is_file()]
    assert len(files) > 5
    for path in files:
        content = path.read_bytes()
        half = len(content) // 2
        damages = [content + b"x"]
        if content:  # Orbax marks its folders with an empty file.
            damages += [
                content[:half],
                content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :],
            ]
        for damage in (None, *damages):
            path.unlink()
            if damage is not None:
                path.write_bytes(damage)
            with pytest.raises(DamagedError) as error:
                manifest.verify(newest)
            assert str(path) in str(error.value)
            path.write_bytes(content)
    manifest.verify(newest)


def test_resumed_from_an_older_checkpoint_a_run_ends_the_same(pg_run, stopped, capfd):
    damaged = checkpoint.path_of(stopped, 6) / "manifest.json"
    damaged.write_text("{}")
    assert run("train", "--resume", stopped) == 0
    message = capfd.readouterr().err.replace("\n", "").replace(" ", "")
    assert str(damaged) in message
    assert str(checkpoint.path_of(stopped, 4)) in message
    assert checkpoint.path_of(stopped, 6).with_name("00000006.damaged").exists()
    assert results(stopped) == results(pg_run)


def test_run_without_a_sound_checkpoint_is_refused(stopped, capfd):
    for update in checkpoint.saved_updates(stopped):
        (checkpoint.path_of(stopped, update) / "manifest.json").unlink()
    before = (stopped / "metrics.jsonl").read_bytes()
    assert run("train", "--resume", stopped) == 2
    assert "resume needs a sound checkpoint" in printed(capfd)
    assert (stopped / "metrics.jsonl").read_bytes() == before


def test_metrics_that_are_damaged_are_not_continued(stopped, capfd):
    path = stopped / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b"0", b"1", 1))
    assert run("train", "--resume", stopped) == 2
    assert "line 1 is damaged" in printed(capfd)


def test_metrics_that_end_early_take_an_older_checkpoint(pg_run, stopped, capfd):
    """A machine that went down may have had the checkpoint on its disk, but not all metrics."""
    path = stopped / "metrics.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:5]))
    assert run("train", "--resume", stopped) == 0
    assert "line 6 is missing" in printed(capfd)
    assert results(stopped) == results(pg_run)


@pytest.mark.parametrize("content", ["", "beta: 0.5\n"])
def test_configuration_that_lost_settings_is_refused(stopped_once, tmp_path, content, capfd):
    (tmp_path / "config.yaml").write_text(content)
    assert run("train", "--resume", tmp_path) == 2
    assert "config" in capfd.readouterr().err
    assert (tmp_path / "config.yaml").read_text() == content


def test_finished_run_whose_parameters_are_damaged_is_mended(pg_run, finished):
    (checkpoint.folder_of(finished) / "final" / "manifest.json").unlink()
    with pytest.raises(SettingError, match=r"final/manifest\.json is missing.*--resume"):
        checkpoint.load_run(finished)
    assert run("train", "--resume", finished) == 0
    checkpoint.load_run(finished)
    assert results(finished) == results(pg_run)


def test_names_that_are_patterns_elsewhere_hold_runs(pg_run, stopped, tmp_path):
    out = stopped.rename(tmp_path / "a [b] * $x")
    assert run("train", "--resume", out) == 0
    checkpoint.load_run(out)
    assert results(out) == results(pg_run)


@pytest.mark.slow
def test_files_that_cannot_grow_stop_the_run_with_one_message(tmp_path):
    """A real limit, which the checkpoints of an MLP do not fit in, and the metrics do."""
    out = tmp_path / "run"
    program = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from ape_jax import cli; from ape_jax.cli import train; fit = train.fit;"
        "limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000));"
        "train.fit = lambda *x: (limit(), fit(*x))[1];"
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
    message = " ".join(done.stderr.split())
    assert "checkpoint not saved" in message
    assert "cannot be written" in message
    assert not list(checkpoint.folder_of(out).glob("*"))
    assert len(metrics.read_updates(out / "metrics.jsonl")) == 40


def test_configuration_that_was_changed_is_told_apart_from_damage(stopped, capfd):
    path = stopped / "config.yaml"
    path.write_text(path.read_text().replace("min_return: -50.0", "min_return: -40.0"))
    assert run("train", "--resume", stopped) == 2
    message = printed(capfd)
    assert "min_return=-50.0" in message
    assert "-40.0" in message


def test_checkpoint_of_other_shapes_is_refused_before_it_is_used(stopped_once):
    config, _ = settings_of(stopped_once)
    wider = TASKS(dataclasses.replace(config.train, num_experts=3))
    with pytest.raises(DamagedError, match=r"is float32\[2, 2\], and must be float32\[2, 3\]"):
        checkpoint.load_state(stopped_once, config, wider, 6)


def test_checkpoint_of_another_schema_is_refused(stopped_once, monkeypatch):
    monkeypatch.setattr(manifest, "SCHEMA", manifest.SCHEMA - 1)
    with pytest.raises(DamagedError, match=f"has schema {manifest.SCHEMA + 1}"):
        manifest.verify(checkpoint.path_of(stopped_once, 6))


def test_unfinished_run_is_named(stopped_once):
    with pytest.raises(SettingError, match=r"run must be finished.*--resume"):
        checkpoint.load_run(stopped_once)


def test_keys_come_back_as_keys(tmp_path):
    tree = {"key": jax.random.split(jax.random.key(3), 2), "x": (jnp.arange(3), jnp.array(True))}
    checkpoint.write(tmp_path / "x", checkpoint.named(tree), {"some": "thing"})
    read = checkpoint.read(tmp_path / "x", lambda: tree)
    assert jax.tree.all(jax.tree.map(lambda a, b: jnp.all(a == b), read, tree))
    assert manifest.verify(tmp_path / "x")["some"] == "thing"
    checkpoint.write(tmp_path / "x", checkpoint.named(tree), {})
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_disk_that_is_full_for_checkpoints_does_not_stop_the_training(
    pg_run, tmp_path, monkeypatch, capfd
):
    write = checkpoint.write

    def full(path, tree, about):
        (full_disk if path.name.endswith("4") else write)(path, tree, about)

    monkeypatch.setattr(checkpoint, "write", full)
    out = tmp_path / "run"
    assert run("train", *PG, "--out", out) == 0
    assert "checkpoint not saved: [Errno 28]" in printed(capfd)
    assert checkpoint.saved_updates(out) == [2, 6, 8]
    assert results(out) == results(pg_run)


@pytest.mark.parametrize("which", ["metrics", "summary"])
def test_disk_that_is_full_stops_the_run_with_a_message(
    which, pg_run, tmp_path, monkeypatch, capfd
):
    """Everything saved stays, and once there is room the run ends as it would have."""
    out = tmp_path / "run"
    append = metrics.MetricsFile.append

    def full(self, chunk, first_update):
        (full_disk if first_update == 4 else append)(self, chunk, first_update)

    with monkeypatch.context() as patch:
        if which == "metrics":
            patch.setattr(metrics.MetricsFile, "append", full)
        else:
            patch.setattr(directory, "write_json", full_disk)
        assert run("train", *PG, "--out", out) == 1
    message = capfd.readouterr().err
    assert "No space left on device" in message
    assert "Traceback" not in message
    assert f"ape-jax train --resume {out}" in message.replace("\n", "")
    assert run("train", "--resume", out) == 0
    assert results(out) == results(pg_run)


def test_losses_that_are_not_finite_stop_the_run_at_their_update(tmp_path, capfd):
    """The learning rate is so large that parameters overflow; nothing of it is saved."""
    out = tmp_path / "run"
    arguments = [*PG, "--learning-rate", "3e38"]
    assert run("train", *arguments, "--out", out) == 1
    message = printed(capfd)
    assert "not finite" in message
    assert "No checkpoint was saved" in message
    assert not checkpoint.saved_updates(out)


def test_guard_names_the_first_term_and_update(stopped_once):
    state = checkpoint.load_state(stopped_once, *settings_of(stopped_once), 6)
    fields = dict.fromkeys(Metrics._fields, np.zeros((2, 3)))
    fields |= {"expert_returns": np.full((2, 3, 2), np.nan), "multipliers": np.zeros((2, 3, 2))}
    bad = np.zeros((2, 3))
    bad[1, 1:] = np.nan
    fields |= {"value_loss": bad, "grad_norm": bad * np.array([1, 0, 1])}
    with pytest.raises(NonFiniteError, match=r"value_loss .* update 11.* seed number 1"):
        guards.check(Metrics(**fields), state, 10)


def test_one_process_at_a_time_writes_to_a_directory(stopped, capfd):
    config, task = settings_of(stopped)
    with RunDirectory.open(Output(stopped, resume=True), config, task) as held:
        assert held.start.num_done == 6
        assert "00000006" in held.last_checkpoint()
        assert run("train", "--resume", stopped) == 2
        assert "out must not be in use" in printed(capfd)
    assert find_start(stopped, config, task)[0].num_done == 6


def test_run_that_came_meanwhile_is_not_replaced(finished):
    """If two processes start at once, the second waits for the lock and then finds a run."""
    config, task = settings_of(finished)
    with (
        pytest.raises(SettingError, match="out must not hold a run already"),
        RunDirectory.open(Output(finished), config, task),
    ):
        pass


@pytest.mark.slow
def test_run_that_is_killed_again_and_again_ends_as_if_it_never_was():
    result = survival.measure(kills=2, num_updates=2000)
    assert result["same_parameters"]
    assert result["same_metrics"]
    assert len(result["rows"]) == 2
    # The chunk that was being saved, and the one that was being computed.
    assert result["most_updates_lost"] <= 2 * survival.SAVE_EVERY
