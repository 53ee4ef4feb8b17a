"""Exact numbers on accelerators, which round the factors of products unless told not to."""

import functools
import inspect
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ape_jax.algorithms import exact, traps
from ape_jax.algorithms.task import make_task
from ape_jax.config import PGConfig
from ape_jax.core import platform, tabular
from ape_jax.core.distributions import Categorical
from ape_jax.core.policies import TablePolicy
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.evaluation import deployment, measure
from ape_jax.observers.latent import LatentMixture
from benchmarks import precision

DEMONSTRATIONS = Demonstrations(
    observation=jnp.zeros(8, jnp.int32),
    action=jnp.zeros(8, jnp.int32),
    reward=jnp.zeros(8),
    terminated=jnp.zeros(8, bool),
    truncated=jnp.zeros(8, bool),
    episode=jnp.zeros(8, jnp.int32),
)


def trained(mdp, policies):
    return exact.train(jax.random.key(0), mdp, 0.3, weights="posterior", num_updates=1)


def objective(mdp, policies):
    return tabular.exact_objective(
        jnp.log(policies), mdp, 0.3, weights="posterior", differentiate_weights=True
    )


def trap_objective(mdp, policies):
    return traps.trap_objective(jnp.log(policies), mdp, traps.TrapConfig(), 0.0)


def of_first(function):
    return lambda mdp, policies: function(mdp, policies[0])


TABULAR = {
    "state_values": of_first(tabular.state_values),
    "policy_return": of_first(tabular.policy_return),
    "optimal_action_values": of_first(lambda mdp, _: tabular.optimal_action_values(mdp)),
    "optimal_policy": of_first(lambda mdp, _: tabular.optimal_policy(mdp)),
    "state_occupancy": of_first(tabular.state_occupancy),
    "reach_limit": of_first(tabular.reach_limit),
    "observer_weights": lambda mdp, policies: tabular.observer_weights(mdp, policies, "posterior"),
    "exact_objective": objective,
    "cloning_ceiling": tabular.cloning_ceiling,
    "cloning_floor": tabular.cloning_floor,
}
OTHERS = {
    "exact.train": trained,
    "trap_objective": trap_objective,
    "trap_returns": lambda mdp, x: traps.trap_returns(jnp.log(x), mdp),
}


def assert_products_have_full_precision(function, *arguments):
    """All products in the program as it is handed to the compiler of a TPU."""
    lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("tpu",))
    products = re.findall(r"stablehlo\.(?:dot|convolution).*", lowered.as_text())
    assert products
    for product in products:
        assert "precision = [HIGHEST, HIGHEST]" in product


def test_every_function_of_finite_mdps_is_checked():
    functions = inspect.getmembers(tabular, inspect.isfunction)
    public = {
        name
        for name, function in functions
        if function.__module__ == tabular.__name__ and not name.startswith("_")
    }
    assert public == set(TABULAR)


@pytest.mark.parametrize("name", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("quantity", [*TABULAR, *OTHERS])
def test_products_of_exact_numbers_and_their_gradients_have_full_precision(
    quantity, name, small_mdp, random_policies
):
    function = (TABULAR | OTHERS)[quantity]

    def of_numbers(numbers, policies):
        return function(small_mdp.replace(**numbers), policies)

    def total(numbers, policies):
        return sum(map(jnp.sum, jax.tree.leaves(of_numbers(numbers, policies))))

    numbers = {key: getattr(small_mdp, key) for key in ("transition", "reward", "start")}
    with platform.tracing_for(name):
        assert_products_have_full_precision(of_numbers, numbers, random_policies)
        if quantity != "optimal_policy":
            gradient = jax.grad(total, argnums=(0, 1))
            assert_products_have_full_precision(gradient, numbers, random_policies)


def test_networks_that_are_evaluated_exactly_have_full_precision(small_grid):
    """With layers of products between a state and its probabilities."""
    task = make_task(PGConfig(head="mlp", hidden_sizes=(4, 4)), small_grid)
    keys = jax.random.split(jax.random.key(0), 1)
    heads = jax.vmap(task.networks.init)(keys).heads
    shown = jax.tree.map(lambda x: x[None], DEMONSTRATIONS)
    measured = functools.partial(measure.measure, task)
    assert_products_have_full_precision(measured, keys, heads, shown)


def test_means_over_modes_have_full_precision(small_task, random_policies):
    policies = TablePolicy(Categorical(jnp.log(random_policies)))

    def deploy(shares):
        modes = LatentMixture(policies, shares, 5)
        world, key = small_task.world, jax.random.key(0)
        return deployment.deploy_modes(world, modes, DEMONSTRATIONS, key)

    assert_products_have_full_precision(deploy, jnp.ones(3) / 3)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    out = tmp_path_factory.mktemp("precision") / "precision.json"
    precision.main(["--out", str(out)])
    return {row["platform"]: row for row in json.loads(out.read_text("utf-8"))["rows"]}


@pytest.mark.parametrize("name", ["gpu", "tpu"])
def test_exact_returns_at_the_precision_of_an_accelerator(name, measured):
    """Against a loop in double precision. Without full precision they would be wrong by one."""
    assert measured[name]["largest_error"] < 1e-3
    assert measured[name]["largest_error_at_default_precision"] > 1


@pytest.mark.parametrize(("name", "bits"), [("gpu", 10), ("tpu", 7)])
def test_factors_of_a_product_are_rounded_as_the_platform_does(name, bits):
    """Also within loops; and only where full precision was not asked for."""

    def repeated(matrix, precision=None):
        def step(vector, _):
            return jnp.matmul(matrix, vector, precision=precision), None

        return jax.lax.scan(step, jnp.ones(3), length=2)[0]

    def coarse(x):
        significant, exponent = np.frexp(np.asarray(x, np.float64))
        return np.ldexp(np.round(significant * 2 ** (bits + 1)) / 2 ** (bits + 1), exponent)

    matrix = jax.random.uniform(jax.random.key(0), (3, 3))
    expected = coarse(matrix) @ coarse(coarse(matrix).sum(axis=-1))
    ours = precision.with_rounded_factors(repeated, name)(matrix)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
    full = precision.with_rounded_factors(lambda x: repeated(x, "highest"), name)(matrix)
    np.testing.assert_allclose(full, repeated(matrix), rtol=1e-6)
