"""Environments: the paper's gridworld, and one ``make`` for every gymnax id."""

import difflib

import gymnax
from gymnax.environments.environment import Environment, EnvParams

from ape_jax.core.tabular import FiniteMDP
from ape_jax.envs.gridworld import GridWorld
from ape_jax.types import SettingError

GRIDWORLD = "GridWorld-ape"
if GRIDWORLD not in gymnax.registered_envs:
    gymnax.register(GRIDWORLD, GridWorld)


def make(env_id: str, **kwargs) -> tuple[Environment, EnvParams]:
    """Make any registered gymnax environment, the gridworld (``GridWorld-ape``) among them.

    Args:
      env_id: a name from ``gymnax.registered_envs``; the user's own registrations count.
      **kwargs: passed to the environment's constructor.

    Returns:
      The environment and its default parameters.

    Raises:
      SettingError: no environment has that name (the message names the nearest), or its data
        cannot be had.
    """
    if env_id not in gymnax.registered_envs:
        lower = {name.lower(): name for name in gymnax.registered_envs}
        near = difflib.get_close_matches(env_id.lower(), lower, n=3, cutoff=0.4)
        names = [lower[name] for name in near] or gymnax.registered_envs
        raise SettingError(
            f"env must be a registered gymnax environment; got {env_id!r}. "
            f"{'Nearest' if near else 'Known'}: {', '.join(names)}"
        )
    try:
        return gymnax.make(env_id, **kwargs)
    except OSError as error:  # Some download their data when they are made.
        raise SettingError(f"env {env_id!r} cannot be made here: {error}") from None


def finite_mdp(env: Environment, params: EnvParams) -> FiniteMDP | None:
    """The environment as a finite MDP, for exact evaluation; None where it does not offer one."""
    build = getattr(env, "finite_mdp", None)
    return None if build is None else build(params)


__all__ = ["GRIDWORLD", "GridWorld", "finite_mdp", "make"]
