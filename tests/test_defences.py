import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ape_jax.config import PGConfig, PGHypers
from ape_jax.core import tabular
from ape_jax.envs import GridWorld
from ape_jax.evaluation import defences
from ape_jax.types import SettingError


@pytest.fixture(scope="module")
def grid_mdp():
    return GridWorld().finite_mdp()


@pytest.fixture(scope="module")
def setting():
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    return defences.prepare(PGConfig(envs_per_expert=4, num_updates=4), PGHypers(), keys)


def returns(setting, ensemble):
    policies = jnp.exp(ensemble.heads["params"]["table"])
    each = jax.vmap(jax.vmap(tabular.policy_return, (None, 0)), (None, 0))
    return np.asarray(each(setting.task.world.mdp, policies))


@pytest.mark.parametrize("name", ["single_optimal", "independent_optimal"])
def test_built_optimal_ensembles_are_optimal(setting, grid_mdp, name):
    best = tabular.policy_return(grid_mdp, tabular.optimal_policy(grid_mdp))
    np.testing.assert_allclose(
        returns(setting, defences.make(setting, name)), np.full((2, 2), best), rtol=1e-5
    )


def test_independent_optimal_experts_differ_and_so_do_seeds(setting):
    tables = np.asarray(
        defences.make(setting, "independent_optimal").heads["params"]["table"]
    ).argmax(-1)
    assert 0.2 < (tables[0, 0] != tables[0, 1]).mean() < 0.8
    assert (tables[0, 0] != tables[1, 0]).any()


def test_bounded_random_policy_pays_the_price_and_no_more(grid_mdp):
    target = jnp.float32(-12.5)
    policy = defences.bounded_random(grid_mdp, target)
    assert float(tabular.policy_return(grid_mdp, policy)) == pytest.approx(-12.5, abs=1e-3)
    values = tabular.optimal_action_values(grid_mdp)
    cost = jnp.max(values, axis=-1, keepdims=True) - values
    assert float(jnp.max(jnp.where(policy > 0, cost, 0.0))) <= defences.SUBOPTIMAL_BOUND + 1e-4
    np.testing.assert_allclose(np.asarray(policy).sum(-1), 1.0, rtol=1e-5)


def test_bounded_random_policy_is_optimal_where_no_price_is_paid(grid_mdp):
    policy = defences.bounded_random(grid_mdp, jnp.float32(0.0))
    np.testing.assert_allclose(policy, tabular.optimal_policy(grid_mdp), atol=1e-6)


def test_bounded_random_costs_what_pg_ape_costs(setting):
    price = returns(setting, defences.make(setting, "pg_ape")).mean(axis=1)
    ours = returns(setting, defences.make(setting, "bounded_random"))
    # Where random heads cost more than any bounded randomness can, it stops there.
    np.testing.assert_allclose(ours[:, 0], ours[:, 1])
    assert np.all(ours[:, 0] >= price - 0.05)


def test_a_single_expert_is_there_several_times(setting):
    ensemble = defences.make(setting, "greedy_ape_single")
    table = ensemble.heads["params"]["table"]
    assert (ensemble.num_experts, table.shape) == (1, (2, 2, 100, 5))
    np.testing.assert_array_equal(table[:, 0], table[:, 1])


def test_the_control_has_the_price_of_greedy_ape(setting):
    """Its pair of hyperparameters is the one whose return is the closest."""
    control = defences.make(setting, "greedy_ape_single")
    ensemble = defences.make(setting, "greedy_ape")
    beta, temperature = re.fullmatch(
        r"beta (\S+), temperature (\S+)", control.facts["settings"]
    ).groups()
    assert float(beta) in defences.CONTROL_BETAS
    assert float(temperature) in defences.CONTROL_TEMPERATURES
    apart = returns(setting, control).mean() - returns(setting, ensemble).mean()
    other = defences.make(setting, "single_optimal")
    assert abs(apart) < abs(returns(setting, other).mean() - returns(setting, ensemble).mean())


def test_a_defence_is_made_once(setting):
    assert defences.make(setting, "entropy") is defences.make(setting, "entropy")


def test_defences_do_not_inherit_what_is_not_theirs(setting):
    odd = PGHypers(min_return=-12.0, temperature=0.1, beta=5.0, ent_coef=3.0)
    other = defences.prepare(setting.config, odd, setting.keys, world=setting.task.world)
    np.testing.assert_array_equal(
        defences.make(setting, "entropy").heads["params"]["table"],
        defences.make(other, "entropy").heads["params"]["table"],
    )


def test_defences_that_need_a_finite_mdp_say_so():
    keys = jax.vmap(jax.random.key)(jnp.arange(1))
    setting = defences.prepare(PGConfig(env="Catch-bsuite", head="mlp"), PGHypers(), keys)
    assert "trap" not in defences.available(setting)
    with pytest.raises(SettingError, match=r"'trap' needs an environment with a finite MDP"):
        defences.check(setting, ["trap"])
    with pytest.raises(SettingError, match="defences must be among"):
        defences.check(setting, ["moat"])


def test_trained_defences_of_a_continuous_observation_space_keep_their_networks():
    keys = jax.vmap(jax.random.key)(jnp.arange(1))
    config = PGConfig(
        env="Catch-bsuite", head="mlp", hidden_sizes=(8,), envs_per_expert=2, num_updates=2
    )
    setting = defences.prepare(config, PGHypers(), keys)
    single = defences.make(setting, "single_optimal")
    kernels = [leaf.shape for leaf in jax.tree.leaves(single.heads) if leaf.ndim == 4]
    assert single.num_experts == 1
    assert all(shape[:2] == (1, 2) for shape in kernels)
    assert defences.make(setting, "greedy_ape").num_experts == 2
