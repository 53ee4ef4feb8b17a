"""Environments: the paper's gridworld, one ``make`` for every gymnax id, and finite MDPs.

Only this package imports gymnax, so that ``_gymnax`` is always first.
"""

from ape_jax.envs import _gymnax  # noqa: F401

# isort: split
import difflib

import gymnax
from gymnax.environments import spaces
from gymnax.environments.environment import Environment, EnvParams
from gymnax.environments.misc.frozen_lake import FrozenLake

from ape_jax.core.tabular import FiniteMDP
from ape_jax.envs import frozen_lake
from ape_jax.envs.bounds import highest_return
from ape_jax.envs.gridworld import GridWorld
from ape_jax.envs.overrides import Overrides, parse_overrides, replace
from ape_jax.types import SettingError

GRIDWORLD = "GridWorld-ape"
"""Name of the paper's gridworld."""
if GRIDWORLD not in gymnax.registered_envs:
    gymnax.register(GRIDWORLD, GridWorld)


def make(env_id: str, overrides: Overrides = (), **kwargs) -> tuple[Environment, EnvParams]:
    """Make any registered gymnax environment, the gridworld (``GridWorld-ape``) among them.

    Args:
      env_id: a name from ``gymnax.registered_envs``; the user's own registrations count.
      overrides: default parameters to replace, such as ``(("max_steps_in_episode", 200),)``.
      **kwargs: passed to the environment's constructor.

    Raises:
      SettingError: an unknown environment or parameter, a value that the parameter cannot take, or
        data of the environment that cannot be had.
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
        env, params = gymnax.make(env_id, **kwargs)
    except OSError as error:  # Some download their data when they are made.
        raise SettingError(f"env {env_id!r} cannot be made here: {error}") from None
    return env, replace(params, overrides, env_id)


def finite_mdp(env: Environment, params: EnvParams) -> FiniteMDP | None:
    """The environment as a finite MDP, for exact evaluation; None where it does not offer one."""
    build = getattr(env, "finite_mdp", None)
    if build is not None:
        return build(params)
    # Not isinstance: a subclass may move otherwise.
    return frozen_lake.finite_mdp(env, params) if type(env) is FrozenLake else None


__all__ = [
    "GRIDWORLD",
    "EnvParams",
    "Environment",
    "GridWorld",
    "finite_mdp",
    "highest_return",
    "make",
    "parse_overrides",
    "spaces",
]
