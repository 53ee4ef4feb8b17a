"""Presets: settings that go together under one name, the paper's and one for each environment.

A preset is a layer of settings for ``ape_jax.config.resolve``: what it leaves out comes from the
recipe of its algorithm, head and min_return.
"""

from typing import Any

from ape_jax.errors import SettingError
from ape_jax.settings.run import RunConfig, resolve


def _ppo(env: str, head: str, min_return: float, **others: Any) -> dict[str, Any]:
    return {"algorithm": "ppo", "env": env, "head": head, "min_return": min_return, **others}


PRESETS: dict[str, dict[str, Any]] = {
    "gridworld": {"env": "GridWorld-ape", "observer": "posterior", "temperature": 0.1},
    "frozen-lake": {
        "env": "FrozenLake-misc",
        "observer": "posterior",
        "temperature": 0.1,
        "beta": 0.3,
        "critic_learning_rate": 0.02,
    },
    "four-rooms": _ppo(
        "FourRooms-misc",
        "mlp",
        0.6,
        env_param=["fail_prob=0", "resample_init_pos=true"],
        normalize_observations=True,
        gate_width=0.2,
    ),
    "catch": _ppo(
        "Catch-bsuite",
        "mlp",
        0.6,
        beta=20.0,
        gate_width=0.3,
        ent_coef=0.1,
        init_temperature=1.0,
        temperature=0.04,
    ),
    "cartpole": _ppo("CartPole-v1", "mlp", 450.0, gate_width=25.0),
    "acrobot": _ppo("Acrobot-v1", "mlp", -110.0, normalize_rewards=True, gate_width=10.0),
    "mountain-car": _ppo(
        "MountainCar-v0",
        "mlp",
        -125.0,
        normalize_observations=True,
        normalize_rewards=True,
        rollout_length=256,
        beta=8.0,
        gate_width=6.0,
        init_temperature=0.3,
        temperature=0.1,
        gae_lambda=0.98,
        ent_coef=0.03,
    ),
    "breakout": _ppo(
        "Breakout-MinAtar", "conv", 15.0, num_updates=150, gate_width=5.0, ent_coef=0.05
    ),
    "asterix": _ppo("Asterix-MinAtar", "conv", 8.0, num_updates=150, beta=1.5, gate_width=4.0),
    "pendulum": _ppo("Pendulum-v1", "gaussian", -250.0, gate_width=50.0, gamma=0.95),
    "mountain-car-continuous": _ppo(
        "MountainCarContinuous-v0",
        "gaussian",
        75.0,
        rollout_length=256,
        beta=1.0,
        gate_width=20.0,
        learning_rate=0.0005,
        ent_coef=0.01,
        gamma=0.999,
    ),
    "point-robot": _ppo(
        "PointRobot-misc",
        "gaussian",
        3.5,
        env_param=["center_init=true"],
        num_updates=400,
        num_minibatches=8,
        beta=1.5,
        gate_width=1.0,
        init_temperature=0.3,
        learning_rate=0.0005,
        ent_coef=0.0,
    ),
    "reacher": _ppo(
        "Reacher-misc",
        "gaussian",
        28.0,
        rollout_length=100,
        envs_per_expert=32,
        num_minibatches=8,
        num_updates=600,
        beta=1.0,
        gate_width=8.0,
        learning_rate=0.0003,
        ent_coef=0.0,
        gamma=0.98,
        gae_lambda=0.98,
    ),
}
"""An ensemble in each environment that the suite measures."""

RECIPES: dict[str, dict[str, Any]] = {
    "paper": {"head": "tabular"},
    "paper-mlp": {"head": "mlp"},
    "greedy": PRESETS["gridworld"],
    "constrained": {"head": "tabular", "min_return": -12.0},
}
"""Ensembles on the gridworld: PG-APE against the observer that samples, with either head; against
the greedy observer; and the constrained form, with experts that return at least −12."""


def names() -> tuple[str, ...]:
    """The names of all presets."""
    return (*RECIPES, *PRESETS)


def config(name: str) -> RunConfig:
    """The run that a preset describes, with one seed.

    Raises:
      SettingError: there is no preset of this name.
    """
    if name not in names():
        raise SettingError(f"preset must be one of {', '.join(names())}; got {name!r}")
    return resolve((RECIPES | PRESETS)[name])
