"""An environment with everything that is fixed about it: parameters, time limit, finite MDP."""

import dataclasses

from gymnax.environments.environment import Environment, EnvParams

from ape_jax.core.tabular import FiniteMDP


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """An environment and what is fixed about it, as one record.

    Compared and hashed by identity, so that it can be a static argument of ``jax.jit``.
    """

    env: Environment
    params: EnvParams
    horizon: int
    """Time limit of an episode, in steps."""
    mdp: FiniteMDP | None
    """The environment as a finite MDP; None where it does not offer one."""
