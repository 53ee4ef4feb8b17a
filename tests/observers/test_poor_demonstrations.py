"""Demonstrations that hold next to nothing: every attacker still gives a policy that acts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand_made import steps

from ape_jax.algorithms.task import Task, make_task
from ape_jax.config import PGConfig
from ape_jax.evaluation.attackers import ATTACKERS, Effort, Setting
from ape_jax.evaluation.deployment import step_log_probs

COUNT = 40
EFFORT = Effort(
    num_steps=COUNT,
    limited_steps=20,
    limited_width=2,
    fit_updates=20,
    recurrent_updates=20,
    latent_restarts=2,
    practice_steps=200,
)
NAMES = [name for name, one in ATTACKERS.items() if not one.asks and one.actions != "continuous"]


def poor():
    """Of no reward at all: short episodes, one that is cut, and one step an episode."""
    generator = np.random.default_rng(0)
    observation, action = generator.integers(0, 9, COUNT), generator.integers(0, 5, COUNT)
    return {
        "constant rewards": steps(observation, action, [5] * 8, ends=range(4), limits=range(4, 8)),
        "a single episode": steps(observation, action, [COUNT]),
        "one step each": steps(observation, action, [1] * COUNT, ends=range(COUNT)),
        "one step each, cut": steps(observation, action, [1] * COUNT),
    }


@pytest.fixture(scope="module")
def vectors(small_task) -> Task:
    """The same task with a network that is to be fitted by minibatches."""
    return make_task(PGConfig(head="mlp", hidden_sizes=(4,)), small_task.world.env)


@pytest.mark.parametrize("name", NAMES)
def test_policies_are_finite(name, small_task):
    made = ATTACKERS[name].make(Setting(small_task, EFFORT, None))

    @jax.jit
    def every(shown):
        fitted = {key: one.fit(jax.random.key(0), shown) for key, one in made.items()}
        if name == "latent":
            fitted = {key: jax.tree.map(lambda x: x[0], one.policies) for key, one in fitted.items()}
        return [step_log_probs(one, shown) for one in fitted.values()]

    for case, shown in poor().items():
        for log_probs in every(shown):
            assert not np.any(np.isnan(log_probs)), case
            assert np.all(log_probs <= 1e-5), case
