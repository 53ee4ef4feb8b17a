"""Demonstrations whose observations are vectors, from worlds in which every return is exact."""

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces

from ape_jax.algorithms.task import make_task
from ape_jax.config import PGConfig, PPOConfig
from ape_jax.core import tabular
from ape_jax.core.policies import tabulate
from ape_jax.demonstrations import collect
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.envs import GridWorld
from ape_jax.evaluation.defences import as_tables
from ape_jax.networks import make_networks

SIZE = 4
GRID = GridWorld(size=SIZE, horizon=30)
MDP = GRID.finite_mdp()
TASK = make_task(PGConfig(), GRID)
CELLS = jnp.stack(jnp.divmod(jnp.arange(SIZE * SIZE), SIZE), axis=-1).astype(jnp.float32)
"""(row, column) of each cell."""
UNIFORM = jnp.full((SIZE * SIZE, 5), 0.2)
OPTIMAL = tabular.optimal_policy(MDP)

NETWORKS = make_networks(
    PPOConfig(head="mlp", hidden_sizes=(32, 32), num_experts=1),
    spaces.Box(0.0, SIZE - 1.0, (2,)),
    spaces.Discrete(5),
)
COLLECT = jax.jit(collect.collect, static_argnums=(1, 3))


def states(policies, num_steps=4_000, seed=0) -> Demonstrations:
    """Steps of experts [E, S, A], whose observations are numbers of cells."""
    heads = as_tables(jnp.log(jnp.maximum(jnp.stack(policies), 1e-9)))
    task = make_task(PGConfig(num_experts=len(policies)), GRID)
    return COLLECT(jax.random.key(seed), task, heads, num_steps)[0]


def vectors(policies, num_steps=4_000, seed=0) -> Demonstrations:
    """The same, where an observation is (row, column)."""
    shown = states(policies, num_steps, seed)
    return shown._replace(observation=CELLS[shown.observation])


def table(policy, temperature=1.0):
    """Probabilities [S, A] of a policy of vectors."""
    return jnp.exp(jax.vmap(lambda x: policy.distribution(x).temper(temperature))(CELLS).log_probs)


def exact_return(probs) -> float:
    return float(tabular.policy_return(MDP, probs))


FIT = jax.jit(lambda observer, key, shown: observer.fit(key, shown), static_argnums=0)
FIT_EACH = jax.jit(
    lambda observer, key, shown: jax.vmap(observer.fit, (None, 0))(key, shown), static_argnums=0
)


def fit(observer, shown):
    return FIT(observer, jax.random.key(0), shown)


def _odd(lengths, terminated, truncated, reward=1.0) -> Demonstrations:
    episode = np.repeat(np.arange(len(lengths)), lengths)
    last = np.append(np.diff(episode) == 1, True)
    count = len(episode)
    return Demonstrations(
        observation=CELLS[np.arange(count)],
        action=jnp.arange(count) % 5,
        reward=jnp.full(count, reward),
        terminated=jnp.asarray(last & terminated),
        truncated=jnp.asarray(last & truncated),
        episode=jnp.asarray(episode),
    )


ODD = {
    "constant rewards": _odd([4] * 3, True, False),
    "no rewards": _odd([4] * 3, True, False, reward=0.0),
    "one episode": _odd([12], True, False),
    "episodes of one step": _odd([1] * 12, True, False),
    "no arrival": _odd([4] * 3, False, True),
    "one step each and no arrival": _odd([1] * 12, False, True),
    "no end marked": _odd([6, 6], False, False),
}
"""Demonstrations with little in them, all of twelve steps."""


def assert_defined_on_little_data(observer, states=False) -> None:
    """Probabilities of all actions are finite and sum to one, with a single step too.

    The fits of all ``ODD`` demonstrations are one program.
    """
    together = jax.tree.map(lambda *x: jnp.stack(x), *ODD.values())
    one_step = _odd([1], True, False)
    if states:
        together, one_step = (
            shown._replace(observation=jnp.zeros_like(shown.action))
            for shown in (together, one_step)
        )
    policies = FIT_EACH(observer, jax.random.key(0), together)
    policies = [jax.tree.map(lambda x, i=i: x[i], policies) for i in range(len(ODD))]
    for policy in (*policies, fit(observer, one_step)):
        probs = jnp.exp(tabulate(policy, len(CELLS)).table.log_probs) if states else table(policy)
        assert bool(jnp.all(jnp.isfinite(probs)))
        np.testing.assert_allclose(jnp.sum(probs, axis=-1), 1.0, rtol=1e-4)
