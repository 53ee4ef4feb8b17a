"""Bad input of every kind, over the whole command line: one message, exit code 2, nothing left."""

import contextlib
import io
import tempfile
from pathlib import Path

import pytest
from command_line import run
from hypothesis import given, settings
from hypothesis import strategies as st

from ape_jax import cli
from ape_jax.cli.train_options import unpack
from ape_jax.config import ALL_SETTINGS, RunConfig
from ape_jax.types import SettingError

PPO = ["--algorithm", "ppo"]


BAD = [
    (["--num-experts", "0"], "num_experts must be at least 1 and whole; got 0"),
    (["--envs-per-expert", "-4"], "envs_per_expert must be at least 1 and whole; got -4"),
    (["--num-updates", "0"], "num_updates must be at least 1 and whole; got 0"),
    (["--num-updates", "ten"], "num-updates"),
    (["--seeds", "0"], "seeds must be at least 1; got 0"),
    (["--first-seed", "-1"], "first_seed must be at least 0"),
    (["--beta", "-1"], "beta must be >= 0"),
    (["--beta", "nan"], "beta must be >= 0"),
    (["--temperature", "0"], "temperature must be > 0"),
    (["--min-return", "nan"], "min_return must be a finite number; got nan"),
    (["--min-return", "low"], "--min-return"),
    (["--min-return", "-9"], "min_return must be at most -9.091, which is what an episode of Grid"),
    (
        ["--preset", "cartpole", "--min-return", "501"],
        "min_return must be at most 500, which is what an episode of CartPole-v1 can pay; got 501",
    ),
    (["--multiplier-rate", "0"], "multiplier_rate must be > 0"),
    (["--classifier-learning-rate", "-1"], "classifier_learning_rate must be > 0"),
    (["--learning-rate", "0"], "learning_rate must be > 0"),
    (["--gamma", "1.1"], "gamma must be in (0, 1]"),
    (["--head", "linear"], "tabular"),
    (["--env", "GridWorld"], "Nearest: GridWorld-ape"),
    (["--env", "CartPole-v1"], "Use head='mlp'"),
    (["--env", "Pendulum-v1", "--head", "mlp"], "needs a discrete action space"),
    (["--env", "CartPole-v1", "--head", "mlp", "--observer", "posterior"], "finite MDP"),
    (["--bta", "1"], "--beta"),
    (["--config", "absent.yaml"], "config must be a readable file"),
    (["--config"], "--config"),
    (
        ["--preset", "gridwrld"],
        "preset must be one of paper, paper-mlp, greedy, constrained, gridworld",
    ),
    (["--preset", "catch", "--config", "some.yaml"], "preset and config each give all settings"),
    (["--env", "CartPole-v1", "--env-param", "gravty=1"], "CartPole-v1; got 'gravty'. Nearest: gr"),
    (["--env", "CartPole-v1", "--env-param", "gravity"], "env-param must be name=value"),
    (["--env", "CartPole-v1", "--env-param", "gravity=low"], "env-param gravity must be a number"),
    (["--env", "Breakout-MinAtar", "--head", "mlp"], "Use head='conv'"),
    ([*PPO, "--env", "Breakout-MinAtar", "--head", "mlp"], "Use head='conv'"),
    ([*PPO, "--env", "Pendulum-v1", "--head", "mlp"], "Use head='gaussian'"),
    ([*PPO, "--env", "CartPole-v1", "--head", "gaussian"], "needs continuous actions"),
    ([*PPO, "--num-minibatches", "3"], "num_minibatches must divide"),
    ([*PPO, "--clip-eps", "1"], "clip_eps must be between 0 and 1; got 1"),
    ([*PPO, "--constraint", "gate"], "constraint='gate' needs min_return"),
    (
        [*PPO, "--observer", "none", "--min-return", "1"],
        "min_return must be None with observer='none'",
    ),
    (["--preset", "catch", "--resume", "run"], "preset and resume each give all settings"),
    (["--resume", "absent"], "resume must be the directory of a run; absent holds no config.yaml"),
    (["--save-every", "0"], "save_every must be at least 1; got 0"),
    (["--keep", "0"], "keep must be at least 1; got 0"),
    (
        ["--wandb", "some"],
        "wandb needs wandb, which is not installed; pip install 'ape-jax[wandb]'",
    ),
    (["--init-temperature", "0.5"], "init_temperature is a setting of algorithm=ppo"),
    (["--clip-eps=0.3"], "clip_eps is a setting of algorithm=ppo"),
    (["--num_epochs", "2"], "num_epochs is a setting of algorithm=ppo"),
    (["--constraint", "gate"], "constraint is a setting of algorithm=ppo"),
    ([*PPO, "--critic", "shared"], "critic is a setting of algorithm=pg"),
    (["--head", "gaussian"], "head must be one of tabular, mlp, conv with algorithm=pg"),
    (["--coordinator", "localhost:1"], "go with --distributed"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=lambda value: " ".join(value)[:40])
def test_bad_settings_get_one_message_and_leave_nothing(arguments, message, tmp_path, capfd):
    out = tmp_path / "run"
    assert run("train", "--out", out, *arguments) == 2
    printed = " ".join(capfd.readouterr().err.replace("│", " ").split())
    assert message in printed
    assert "Traceback" not in printed
    assert not out.exists()


OTHERS = [
    (["plot"], "runs must name at least one; got none"),
    (["plot", "absent"], "absent/metrics.jsonl is not readable"),
    (
        ["plot", "absent", "--out", "curves.gif"],
        "out must end in .png, .pdf or .svg; got curves.gif",
    ),
    (["export", "--out", "files"], "run"),
    (["export", "absent", "--out", "files"], "run must be a directory that ape-jax train made"),
    (["suite", "--only", "paper", "--out", "suite.json"], "only must name presets or environments"),
    (["suite", "--out", "suite.txt"], "out must be named *.json; got suite.txt"),
    (["reproduce", "--seeds", "-1", "--out", "x"], "seeds must be at least 1; got -1"),
]


@pytest.mark.parametrize(("arguments", "message"), OTHERS, ids=lambda value: " ".join(value)[:40])
def test_bad_input_of_other_commands_leaves_nothing(
    arguments, message, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    printed = " ".join(capfd.readouterr().err.replace("│", " ").split())
    assert message in printed
    assert "Traceback" not in printed
    assert not list(tmp_path.iterdir())


FIELDS = sorted(ALL_SETTINGS.keys() - {"env", "env_param"})
VALUES = st.one_of(
    st.integers(-(2**40), 2**40).map(str),
    st.floats(width=32).map(str),
    st.sampled_from(
        ["", "none", "None", "true", "ppo", "gaussian", "1,2", "é", "--", "[1]", "1e999"]
    ),
    st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=6),
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, min_size=1, max_size=3))
def test_any_flags_are_taken_or_get_one_message(given_flags):
    """Nothing else comes of them: no other exception, and no value that a rule forbids."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given_flags.items()]
    code, message = 0, ""
    with contextlib.redirect_stderr(io.StringIO()) as printed:
        try:
            config = unpack(cli.parse(["train", *flags])).config
        except SettingError as error:
            message = str(error)
        except SystemExit as error:
            code, message = error.code, printed.getvalue()
    if message:
        assert code in (0, 2)
        return
    with tempfile.TemporaryDirectory() as folder:
        config.save(Path(folder) / "config.yaml")
        assert RunConfig.load(Path(folder) / "config.yaml") == config


def test_unknown_yaml_key_gets_one_message(tmp_path, capfd):
    (tmp_path / "bad.yaml").write_text("num_expert: 3\n")
    assert run("train", "--config", tmp_path / "bad.yaml", "--out", tmp_path / "run") == 2
    assert "unknown setting 'num_expert'; did you mean num_experts?" in " ".join(
        capfd.readouterr().err.split()
    )


@pytest.mark.parametrize("command", ["train", "reproduce"])
def test_output_that_cannot_be_written_gets_one_message(command, tmp_path, capfd):
    (tmp_path / "file").write_text("in the way")
    assert run(command, "--out", tmp_path / "file" / "run") == 2
    assert "out must be a directory that can be written" in capfd.readouterr().err


def test_reproduce_rejects_no_seeds(tmp_path, capfd):
    assert run("reproduce", "--seeds", "0", "--out", tmp_path / "run") == 2
    assert "seeds must be at least 1; got 0" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
