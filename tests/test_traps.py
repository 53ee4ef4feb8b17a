import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ape_jax.algorithms import traps
from ape_jax.algorithms.task import make_task
from ape_jax.config import PGConfig
from ape_jax.core import tabular
from ape_jax.demonstrations import collect
from ape_jax.envs import GridWorld
from ape_jax.evaluation import returns
from ape_jax.observers import TabularCloning
from ape_jax.types import SettingError

SMALL = traps.TrapConfig(num_restarts=3, num_updates=5, train_horizon=6)
UP, DOWN, LEFT, RIGHT, STAY = range(5)


def test_returns_of_a_trap_made_by_hand():
    """On a 2 × 2 grid the experts leave the far corner by different ways; both often stay.

    Far corner: expert 1 goes up and expert 2 left with probability 0.6, both stay with 0.4. Each
    greedy expert needs two steps from there, but staying has the majority of the pool.
    """
    mdp = GridWorld(size=2, horizon=50).finite_mdp()
    probs = np.zeros((2, 4, 5))
    probs[:, 0, STAY] = 1.0
    probs[:, 1, LEFT] = 1.0
    probs[:, 2, UP] = 1.0
    probs[:, 3, STAY] = 0.4
    probs[0, 3, UP] = probs[1, 3, LEFT] = 0.6
    found = traps.trap_returns(jnp.log(jnp.asarray(probs) + 1e-12), mdp)
    greedy = -(1 + 1 + 2) / 3
    sampled = -(1 + 1 + 1 + 1 / 0.6) / 3
    np.testing.assert_allclose(found.greedy_experts, greedy, rtol=1e-5)
    np.testing.assert_allclose(found.experts, sampled, rtol=1e-4)
    np.testing.assert_allclose(found.clone, sampled, rtol=1e-4)
    np.testing.assert_allclose(found.greedy_clone, -(1 + 1 + 50) / 3, rtol=1e-5)
    np.testing.assert_allclose(found.worst_start, -2.0, rtol=1e-5)


def test_objective_of_one_temperature_reduces_to_the_exact_one(small_mdp, random_policies):
    """Utilities are almost linear here, and experts are trained only at temperature 1."""
    config = traps.TrapConfig(
        expert_temperatures=(1.0,), clone_temperature=0.2, utility_scale=1e6, beta=0.9
    )
    logits = jnp.log(random_policies)
    ours = traps.trap_objective(logits, small_mdp, config, 0.0)
    theirs = tabular.exact_objective(
        logits, small_mdp, 0.9 / 3, weights="posterior", temperature=0.2
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_objective_lets_beta_fall_to_its_end_fraction(small_mdp, random_policies):
    config = traps.TrapConfig(beta=0.9, beta_end_fraction=0.5)
    logits = jnp.log(random_policies)
    without = dataclasses.replace(config, beta=0.0)
    start, end = (
        traps.trap_objective(logits, small_mdp, config, progress)
        - traps.trap_objective(logits, small_mdp, without, progress)
        for progress in (0.0, 1.0)
    )
    np.testing.assert_allclose(end, 0.5 * start, rtol=1e-4)


def test_slack_is_the_tightest_share():
    config = traps.TrapConfig(min_return=-14.0, min_greedy_return=-10.0, max_clone_return=-70.0)
    found = traps.TrapReturns(
        experts=jnp.array([-7.0, -10.5]),
        greedy_experts=jnp.array([-9.0, -8.0]),
        clone=jnp.array(-9.0),
        greedy_clone=jnp.array(-84.0),
        worst_start=jnp.array(-60.0),
    )
    assert traps.slack(found, config) == pytest.approx(0.1)
    missed = found._replace(greedy_clone=jnp.array(-63.0))
    assert traps.slack(missed, config) == pytest.approx(-0.1)


def test_train_reports_the_ensembles_that_it_returns_for_every_key(small_mdp):
    keys = jax.random.split(jax.random.key(1), 2)
    train = jax.jit(jax.vmap(lambda key: traps.train(key, small_mdp, 3, SMALL)))
    all_logits, reports = train(keys)
    assert all_logits.shape == (2, 3, 9, 5)
    for index, logits in enumerate(all_logits):
        report = jax.tree.map(lambda x, index=index: x[index], reports)
        again = traps.trap_returns(logits, small_mdp)
        chex.assert_trees_all_close(report.returns, again, rtol=1e-3)
        assert report.trapped == (traps.slack(again, SMALL) >= 0)
        assert 0 <= report.num_trapped <= SMALL.num_restarts


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_restarts", 0),
        ("train_horizon", 0),
        ("clone_temperature", 0.0),
        ("expert_temperatures", ()),
        ("utility_scale", 0.0),
    ],
)
def test_config_names_a_setting_that_breaks_a_rule(name, value):
    with pytest.raises(SettingError, match=r"must be|at least one"):
        traps.TrapConfig(**{name: value})


@pytest.mark.slow
def test_most_pairs_on_the_paper_grid_trap_the_greedy_clone_of_sampled_demonstrations():
    """The claim is six of ten seeds: of three, at least two. The clone counts demonstrations."""
    task = make_task(PGConfig(num_experts=2), GridWorld())
    keys = jax.vmap(jax.random.key)(jnp.arange(1000, 1003))

    @jax.jit
    def outcome(key):
        logits, report = traps.train(key, task.world.mdp, 2)
        shown, _ = collect.collect(key, task, {"params": {"table": logits}}, 200_000)
        cloning = TabularCloning(task.world.mdp.num_states, task.world.mdp.num_actions)
        clone = returns.greedy(cloning.fit(key, shown))
        return report.returns, returns.expected_return(task.world, clone, key)

    successes = 0
    for key in keys:
        found, clone = outcome(key)
        successes += bool(
            (jnp.min(found.greedy_experts) >= -13.0)
            & (jnp.min(found.experts) >= -14.0)
            & (clone <= -70.0)
        )
    assert successes >= 2
