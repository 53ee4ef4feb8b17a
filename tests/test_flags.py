"""Every flag of ``ape-jax train`` means the same in every spelling that the parser takes."""

import dataclasses
from pathlib import Path

import pytest

from ape_jax import cli
from ape_jax.cli.train_options import TrainOptions, Watch, unpack
from ape_jax.config import ALL_SETTINGS, RunConfig, resolve
from ape_jax.types import SettingError

COMMON = {
    "num_experts": 3,
    "envs_per_expert": 32,
    "num_updates": 7,
    "hidden_sizes": (8, 4),
    "activation": "relu",
    "learning_rate": 0.125,
    "critic_learning_rate": 0.25,
    "lr_end_fraction": 0.5,
    "max_grad_norm": 2.0,
    "beta": 0.75,
    "gamma": 0.875,
    "temperature": 0.5,
    "ent_coef": 0.0625,
    "classifier_learning_rate": 0.375,
    "multiplier_rate": 0.03125,
    "max_multiplier": 12.0,
    "min_return": -12.5,
    "seeds": 2,
    "first_seed": 5,
    "save_every": 25,
    "env_param": ("size=4", "horizon=9"),
}
PG = {
    **COMMON,
    "algorithm": "pg",
    "env": "FrozenLake-misc",
    "head": "mlp",
    "observer": "learned",
    "critic": "shared",
}
PPO = {
    **COMMON,
    "algorithm": "ppo",
    "env": "Pendulum-v1",
    "head": "gaussian",
    "observer": "uniform",
    "std": "state",
    "constraint": "multipliers",
    "rollout_length": 64,
    "num_epochs": 3,
    "num_minibatches": 8,
    "normalize_observations": False,
    "normalize_rewards": True,
    "init_temperature": 0.9375,
    "gate_width": 3.0,
    "gae_lambda": 0.625,
    "clip_eps": 0.28125,
    "value_clip_eps": 0.34375,
}
OTHERS = {
    "out": "some",
    "overwrite": True,
    "keep": 4,
    "quiet": True,
    "tensorboard": True,
    "wandb": "project",
    "devices": 1,
    "distributed": True,
    "coordinator": "localhost:1",
    "num_processes": 2,
    "process_id": 1,
}


def spell(settings, separator, equals):
    """The flags that say some settings, in one spelling."""
    flags = []
    for name, value in settings.items():
        flag = "--" + name.replace("_", separator)
        if isinstance(value, bool):
            flags.append(flag if value else flag.replace("--", f"--no{separator}", 1))
        elif name == "env_param":
            flags += [
                part for text in value for part in ([f"{flag}={text}"] if equals else [flag, text])
            ]
        elif isinstance(value, tuple):
            flags += [flag, *map(str, value)]
        else:
            flags += [f"{flag}={value}"] if equals else [flag, str(value)]
    return flags


SPELLINGS = [("-", False), ("_", False), ("-", True), ("_", True)]


def config_of(*flags):
    return unpack(cli.parse(["train", *map(str, flags)])).config


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "some.yaml"
    path.write_text("beta: 0.1\nseeds: 9\nenv_param: [size=5]\n")
    return path


def test_every_setting_and_option_is_tried():
    assert {*PG, *PPO} == set(ALL_SETTINGS)
    named = {field.name for field in dataclasses.fields(TrainOptions)}
    watch = {field.name for field in dataclasses.fields(Watch)}
    given_by_layers = {"settings", "env_param", "preset", "config", "resume", "watch"}
    assert (named | watch) - given_by_layers == set(OTHERS)


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("settings", [PG, PPO], ids=["pg", "ppo"])
def test_every_flag_sets_its_setting(settings, spelling, file):
    expected = resolve(settings)
    assert {name: expected.to_flat()[name] for name in settings} == {
        name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()
    }
    flags = spell(settings, *spelling)
    assert config_of(*flags) == expected
    assert config_of(*flags, "--config", file) == expected
    preset = "frozen-lake" if settings is PG else "pendulum"
    assert config_of("--preset", preset, *flags) == expected


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize(
    "settings",
    [
        {"min_return": -12.0},
        {"head": "mlp"},
        {"algorithm": "ppo"},
        {"head": "mlp", "min_return": -12.0},
    ],
    ids=str,
)
def test_flags_choose_the_recipe_in_every_spelling(settings, spelling, file):
    flags = spell(settings, *spelling)
    assert config_of(*flags) == resolve(settings)
    layered = resolve({"beta": 0.1, "seeds": 9, "env_param": ["size=5"]}, settings)
    assert config_of("--config", file, *flags) == layered
    assert config_of(*flags).to_flat() != RunConfig().to_flat()


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_other_option_is_set(spelling):
    options = cli.parse(["train", *spell(OTHERS, *spelling)])
    found = {**vars(options), **vars(options.watch)}
    assert {name: found[name] for name in OTHERS} == {**OTHERS, "out": Path("some")}
    assert dict(options.settings) == {}


def test_a_setting_may_be_turned_off():
    """Such as one that is true in a preset, or a number that is None."""
    assert not config_of("--preset", "acrobot", "--no-normalize-rewards").train.normalize_rewards
    assert config_of("--preset", "paper", "--min-return", "None").hypers.min_return is None


def test_preset_comes_before_flags():
    config = config_of("--preset", "catch", "--beta", "0.1", "--num-updates=1")
    assert config == resolve(
        {**config_of("--preset", "catch").to_flat(), "beta": 0.1, "num_updates": 1}
    )


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_resumed_run_takes_its_own_settings_and_no_others(spelling, tmp_path):
    own = resolve(PPO)
    own.save(tmp_path / "config.yaml")
    resume = ["--resume", tmp_path]
    assert config_of(*resume) == own
    assert config_of(*resume, *spell(PPO, *spelling)) == own
    for name, value in (("min_return", -13.0), ("critic", "shared"), ("env_param", ("size=5",))):
        with pytest.raises(SettingError, match=rf"resume .* {name} "):
            config_of(*resume, *spell({name: value}, *spelling))
