import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ape_jax.config import PGConfig, PGHypers
from ape_jax.core import tabular
from ape_jax.envs import GridWorld
from ape_jax.evaluation import defences
from ape_jax.evaluation.defences import Defences
from ape_jax.types import SettingError


@pytest.fixture(scope="module")
def grid_mdp():
    return GridWorld().finite_mdp()


@pytest.fixture(scope="module")
def house():
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    return Defences(PGConfig(envs_per_expert=4, num_updates=4), PGHypers(), keys)


def returns(house, ensemble):
    policies = jnp.exp(ensemble.heads["params"]["table"])
    each = jax.vmap(jax.vmap(tabular.policy_return, (None, 0)), (None, 0))
    return np.asarray(each(house.task.world.mdp, policies))


@pytest.mark.parametrize("name", ["single_optimal", "independent_optimal"])
def test_built_optimal_ensembles_are_optimal(house, grid_mdp, name):
    best = tabular.policy_return(grid_mdp, tabular.optimal_policy(grid_mdp))
    np.testing.assert_allclose(returns(house, house.make(name)), np.full((2, 2), best), rtol=1e-5)


def test_independent_optimal_experts_differ_and_so_do_seeds(house):
    tables = np.asarray(house.make("independent_optimal").heads["params"]["table"]).argmax(-1)
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


def test_bounded_random_costs_what_pg_ape_costs(house):
    price = returns(house, house.make("pg_ape")).mean(axis=1)
    ours = returns(house, house.make("bounded_random"))
    # Where random heads cost more than any bounded randomness can, it stops there.
    np.testing.assert_allclose(ours[:, 0], ours[:, 1])
    assert np.all(ours[:, 0] >= price - 0.05)


def test_a_single_expert_is_there_several_times(house):
    ensemble = house.make("greedy_ape_single")
    table = ensemble.heads["params"]["table"]
    assert (ensemble.num_experts, table.shape) == (1, (2, 2, 100, 5))
    np.testing.assert_array_equal(table[:, 0], table[:, 1])


def test_a_defence_is_made_once(house):
    assert house.make("entropy") is house.make("entropy")


def test_defences_that_need_a_finite_mdp_say_so():
    keys = jax.vmap(jax.random.key)(jnp.arange(1))
    house = Defences(PGConfig(env="Catch-bsuite", head="mlp"), PGHypers(), keys)
    assert "trap" not in house.available
    with pytest.raises(SettingError, match=r"'trap' needs an environment with a finite MDP"):
        house.check(["trap"])
    with pytest.raises(SettingError, match="defences must be among"):
        house.check(["moat"])


def test_trained_defences_of_a_continuous_observation_space_keep_their_networks():
    keys = jax.vmap(jax.random.key)(jnp.arange(1))
    config = PGConfig(
        env="Catch-bsuite", head="mlp", hidden_sizes=(8,), envs_per_expert=2, num_updates=2
    )
    house = Defences(config, PGHypers(), keys)
    single = house.make("single_optimal")
    kernels = [leaf.shape for leaf in jax.tree.leaves(single.heads) if leaf.ndim == 4]
    assert single.num_experts == 1
    assert all(shape[:2] == (1, 2) for shape in kernels)
    assert house.make("greedy_ape").num_experts == 2
