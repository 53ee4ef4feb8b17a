"""The highest return that an episode can have, where it is known."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from gymnax.environments.bsuite.catch import Catch
from gymnax.environments.classic_control.acrobot import Acrobot
from gymnax.environments.classic_control.cartpole import CartPole
from gymnax.environments.classic_control.continuous_mountain_car import ContinuousMountainCar
from gymnax.environments.classic_control.mountain_car import MountainCar
from gymnax.environments.classic_control.pendulum import Pendulum
from gymnax.environments.environment import Environment, EnvParams
from gymnax.environments.misc.rooms import FourRooms

from ape_jax.core.tabular import FiniteMDP, optimal_action_values

_HIGHEST: dict[type, Callable[[Any], float]] = {
    Acrobot: lambda _: 0.0,  # Every step costs.
    CartPole: lambda params: float(params.max_steps_in_episode),
    Catch: lambda _: 1.0,
    ContinuousMountainCar: lambda _: 100.0,
    FourRooms: lambda _: 1.0,
    MountainCar: lambda _: 0.0,
    Pendulum: lambda _: 0.0,
}


def highest_return(env: Environment, params: EnvParams, mdp: FiniteMDP | None) -> float | None:
    """A bound of the undiscounted return of an episode; None where none is known.

    The best return of a finite MDP is exact.
    """
    if mdp is not None:
        best = jnp.max(optimal_action_values(mdp), axis=-1)
        return float(mdp.mean_over_starts(jnp.where(mdp.terminal, 0.0, best)))
    # Not isinstance: a subclass may pay otherwise.
    bound = _HIGHEST.get(type(env))
    return None if bound is None else bound(params)
