"""Demonstrations that hold next to nothing: every attacker still gives a policy that acts."""

import jax
import numpy as np
import pytest
from hand_made import Coordinates, steps
from probes import Probe

from ape_jax.algorithms.task import make_task
from ape_jax.config import PGConfig, PPOConfig
from ape_jax.envs import GridWorld
from ape_jax.evaluation.attackers import ATTACKERS, choose
from ape_jax.evaluation.deployment import step_log_probs
from ape_jax.evaluation.effort import Effort, Setting
from ape_jax.observers.threats import THREATS

COUNT = 40
EFFORT = Effort(
    num_steps=COUNT,
    limited_steps=20,
    limited_width=2,
    fit_updates=20,
    recurrent_updates=20,
    latent_restarts=2,
    gail_updates=4,
    practice_steps=200,
)


def tasks():
    """Finite observations, vectors, and vectors with continuous actions."""
    mlp = PGConfig(head="mlp", hidden_sizes=(4,))
    gaussian = PPOConfig(head="gaussian", hidden_sizes=(4,))
    grid = {"size": 3, "goal": (0, 1), "horizon": 8}
    return {
        "finite": make_task(PGConfig(), GridWorld(**grid)),
        "vectors": make_task(mlp, Coordinates(**grid)),
        "continuous": make_task(
            gaussian, Probe(lambda shown, action: 0.0, length=8, continuous=True, limit=8)
        ),
    }


TASKS = tasks()
OF_VECTORS = (
    "escape",
    "frame_stack",
    "advantage_weighted",
    "offline_q",
    "shortest_path",
    "from_observations",
)
"""Those that do something else where observations are vectors."""
CASES = [
    (kind, name)
    for kind, task in TASKS.items()
    for name in choose(list(ATTACKERS), list(THREATS), task.world, has_experts=False)[0]
    if kind == "finite" or name in OF_VECTORS
]


def poor(kind):
    """Steps without any reward: short episodes, one that is cut, and one step an episode."""
    generator = np.random.default_rng(0)
    observation, action = generator.integers(0, 9, COUNT), generator.integers(0, 5, COUNT)
    if kind == "vectors":
        observation = np.stack(np.divmod(observation, 3), axis=-1).astype(np.float32)
    if kind == "continuous":
        observation, action = generator.normal(size=(2, COUNT, 1)).astype(np.float32)
    return {
        "constant rewards": steps(observation, action, [5] * 8, ends=range(4), limits=range(4, 8)),
        "a single episode": steps(observation, action, [COUNT]),
        "one step each": steps(observation, action, [1] * COUNT, ends=range(COUNT)),
        "one step each, cut": steps(observation, action, [1] * COUNT),
    }


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_policies_are_finite(kind, name):
    *_, observer = ATTACKERS[name].make(Setting(TASKS[kind], EFFORT, None)).values()

    @jax.jit
    def fitted(shown):
        return step_log_probs(observer.fit(jax.random.key(0), shown), shown)

    for case, shown in poor(kind).items():
        log_probs = fitted(shown)
        assert not np.any(np.isnan(log_probs)), case
        if kind != "continuous":
            assert np.all(log_probs <= 1e-5), case
