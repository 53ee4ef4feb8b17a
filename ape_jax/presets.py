"""Settings that train an ensemble in each of the environments that the suite measures."""

import dataclasses
from typing import NamedTuple

from ape_jax.config import Hypers, TrainConfig, recipe
from ape_jax.types import SettingError


class Preset(NamedTuple):
    """What ``--preset`` stands for."""

    train: TrainConfig
    hypers: Hypers


_TRAIN = TrainConfig(
    algorithm="ppo",
    head="mlp",
    hidden_sizes=(64, 64),
    envs_per_expert=16,
    observer="learned",
    hold="gate",
    num_updates=300,
)
_HYPERS = Hypers(
    learning_rate=1e-3,
    critic_learning_rate=1e-3,
    classifier_learning_rate=1e-3,
    final_rate_share=0.1,
    max_grad_norm=0.5,
    beta=2.5,
    discount=0.99,
    entropy_bonus=0.02,
    temperature=0.15,
    first_temperature=0.5,
)


def _ppo(env: str, train: dict, hypers: dict) -> Preset:
    return Preset(
        dataclasses.replace(_TRAIN, env=env, **train), dataclasses.replace(_HYPERS, **hypers)
    )


def _grid(env: str, train: dict, hypers: dict) -> Preset:
    first = recipe("tabular")
    train = {"env": env, "observer": "posterior", **train}
    return Preset(dataclasses.replace(first[0], **train), dataclasses.replace(first[1], **hypers))


_GAUSSIAN = {"head": "gaussian", "normalize_observations": True, "normalize_rewards": True}
_MINATAR = {"head": "conv", "hidden_sizes": (128,), "activation": "relu", "envs_per_expert": 64}

PRESETS = {
    "gridworld": _grid("GridWorld-ape", {}, {"temperature": 0.1}),
    "frozen-lake": _grid("FrozenLake-misc", {}, {"temperature": 0.1}),
    "four-rooms": _ppo(
        "FourRooms-misc",
        {
            "env_param": ("fail_prob=0", "resample_init_pos=true"),
            "normalize_observations": True,
        },
        {"min_return": 0.6, "gate_scale": 0.2},
    ),
    "catch": _ppo("Catch-bsuite", {}, {"min_return": 0.75, "gate_scale": 0.2}),
    "cartpole": _ppo("CartPole-v1", {}, {"min_return": 450.0, "gate_scale": 25.0}),
    "acrobot": _ppo(
        "Acrobot-v1",
        {"normalize_rewards": True},
        {"min_return": -110.0, "gate_scale": 10.0},
    ),
    "mountain-car": _ppo(
        "MountainCar-v0",
        {"normalize_observations": True, "normalize_rewards": True, "segment_length": 256},
        {"min_return": -140.0, "gate_scale": 10.0, "trace_decay": 0.98, "entropy_bonus": 0.05},
    ),
    "breakout": _ppo("Breakout-MinAtar", _MINATAR, {"min_return": 8.0, "gate_scale": 2.0}),
    "asterix": _ppo("Asterix-MinAtar", _MINATAR, {"min_return": 3.0, "gate_scale": 1.0}),
    "pendulum": _ppo(
        "Pendulum-v1",
        _GAUSSIAN,
        {"min_return": -250.0, "gate_scale": 50.0, "discount": 0.95, "entropy_bonus": 0.002},
    ),
    "mountain-car-continuous": _ppo(
        "MountainCarContinuous-v0",
        {**_GAUSSIAN, "segment_length": 256},
        {"min_return": 80.0, "gate_scale": 5.0, "entropy_bonus": 0.01, "discount": 0.999},
    ),
    "point-robot": _ppo("PointRobot-misc", _GAUSSIAN, {"min_return": 1.0, "gate_scale": 1.0}),
    "reacher": _ppo(
        "Reacher-misc",
        _GAUSSIAN,
        {"min_return": -20.0, "gate_scale": 5.0, "entropy_bonus": 0.002, "discount": 0.95},
    ),
}
"""By the names that the command line knows them by."""


def find(name: str) -> Preset:
    """The preset of a name.

    Raises:
      SettingError: there is none.
    """
    if name not in PRESETS:
        raise SettingError(f"preset must be one of {', '.join(PRESETS)}; got {name!r}")
    return PRESETS[name]
