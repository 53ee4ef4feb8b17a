"""Settings that go together, under one name: the paper's, and one for each environment."""

import dataclasses
from typing import NamedTuple

from ape_jax.config import Hypers, TrainConfig, recipe
from ape_jax.types import HeadName, SettingError


class Preset(NamedTuple):
    """What ``--preset`` stands for."""

    train: TrainConfig
    """What shapes the program."""
    hypers: Hypers
    """Numbers in the program."""


def _ppo(
    env: str, head: HeadName, *, min_return: float, hypers: dict, train: dict | None = None
) -> Preset:
    """The settings that ppo is tried with first, but for those that were tuned."""
    first = recipe(head, min_return, "ppo")
    return Preset(
        dataclasses.replace(first[0], env=env, **(train or {})),
        dataclasses.replace(first[1], **hypers),
    )


def _finite(env: str, hypers: dict) -> Preset:
    """Experts whose greedy clone is led astray, by exact posterior weights."""
    first = recipe("tabular")
    return Preset(
        dataclasses.replace(first[0], env=env, observer="posterior"),
        dataclasses.replace(first[1], temperature=0.1, **hypers),
    )


PRESETS = {
    "gridworld": _finite("GridWorld-ape", {}),
    "frozen-lake": _finite("FrozenLake-misc", {"beta": 0.3, "critic_learning_rate": 0.02}),
    "four-rooms": _ppo(
        "FourRooms-misc",
        "mlp",
        min_return=0.6,
        train={
            "env_param": ("fail_prob=0", "resample_init_pos=true"),
            "normalize_observations": True,
        },
        hypers={"gate_width": 0.2},
    ),
    "catch": _ppo(
        "Catch-bsuite",
        "mlp",
        min_return=0.6,
        hypers={
            "beta": 20.0,
            "gate_width": 0.3,
            "ent_coef": 0.1,
            "init_temperature": 1.0,
            "temperature": 0.04,
        },
    ),
    "cartpole": _ppo("CartPole-v1", "mlp", min_return=450.0, hypers={"gate_width": 25.0}),
    "acrobot": _ppo(
        "Acrobot-v1",
        "mlp",
        min_return=-110.0,
        train={"normalize_rewards": True},
        hypers={"gate_width": 10.0},
    ),
    "mountain-car": _ppo(
        "MountainCar-v0",
        "mlp",
        min_return=-125.0,
        train={"normalize_observations": True, "normalize_rewards": True, "rollout_length": 256},
        hypers={
            "beta": 8.0,
            "gate_width": 6.0,
            "init_temperature": 0.3,
            "temperature": 0.1,
            "gae_lambda": 0.98,
            "ent_coef": 0.03,
        },
    ),
    "breakout": _ppo(
        "Breakout-MinAtar",
        "conv",
        min_return=15.0,
        train={"num_updates": 150},
        hypers={"gate_width": 5.0, "ent_coef": 0.05},
    ),
    "asterix": _ppo(
        "Asterix-MinAtar",
        "conv",
        min_return=8.0,
        train={"num_updates": 150},
        hypers={"beta": 1.5, "gate_width": 4.0},
    ),
    "pendulum": _ppo(
        "Pendulum-v1",
        "gaussian",
        min_return=-250.0,
        hypers={"gate_width": 50.0, "gamma": 0.95},
    ),
    "mountain-car-continuous": _ppo(
        "MountainCarContinuous-v0",
        "gaussian",
        min_return=75.0,
        train={"rollout_length": 256},
        hypers={
            "beta": 1.0,
            "gate_width": 20.0,
            "learning_rate": 5e-4,
            "ent_coef": 0.01,
            "gamma": 0.999,
        },
    ),
    "point-robot": _ppo(
        "PointRobot-misc",
        "gaussian",
        min_return=3.5,
        train={"env_param": ("center_init=true",), "num_updates": 400, "num_minibatches": 8},
        hypers={
            "beta": 1.5,
            "gate_width": 1.0,
            "init_temperature": 0.3,
            "learning_rate": 5e-4,
            "ent_coef": 0.0,
        },
    ),
    "reacher": _ppo(
        "Reacher-misc",
        "gaussian",
        min_return=28.0,
        train={
            "rollout_length": 100,
            "envs_per_expert": 32,
            "num_minibatches": 8,
            "num_updates": 600,
        },
        hypers={
            "beta": 1.0,
            "gate_width": 8.0,
            "learning_rate": 3e-4,
            "ent_coef": 0.0,
            "gamma": 0.98,
            "gae_lambda": 0.98,
        },
    ),
}
"""What the suite measures: an ensemble in each of its environments."""

RECIPES = {
    "paper": Preset(*recipe("tabular")),
    "paper-mlp": Preset(*recipe("mlp")),
    "greedy": PRESETS["gridworld"],
    "constrained": Preset(*recipe("tabular", min_return=-12.0)),
}
"""On the gridworld: PG-APE against the observer that samples, with either head; against the greedy
one; and the constrained form, with experts of at least −12."""


def names() -> tuple[str, ...]:
    """Of all presets."""
    return (*RECIPES, *PRESETS)


def find(name: str) -> Preset:
    """The preset of a name.

    Raises:
      SettingError: there is none.
    """
    if name not in names():
        raise SettingError(f"preset must be one of {', '.join(names())}; got {name!r}")
    return (RECIPES | PRESETS)[name]
