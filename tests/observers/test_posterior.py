import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ape_jax.core import tabular
from ape_jax.evaluation import returns
from ape_jax.observers import Posterior


@pytest.fixture(scope="module")
def heads(small_task):
    return jax.tree.map(lambda x: 1.5 * x, small_task.networks.init(jax.random.key(2)).heads)


def test_posterior_weighs_experts_by_where_they_go(small_task, small_mdp, heads):
    policies = jnp.exp(small_task.networks.tabulate_experts(heads))
    occupancies = jax.vmap(tabular.state_occupancy, (None, 0))(small_mdp, policies)
    expected = (
        jnp.einsum("es,esa->sa", occupancies, policies) / jnp.sum(occupancies, axis=0)[:, None]
    )
    clone = Posterior(small_task, heads).fit(jax.random.key(0), None)
    alive = np.asarray(~small_mdp.terminal)
    ours = returns.policy_table(clone, 9)
    np.testing.assert_allclose(np.asarray(ours)[alive], np.asarray(expected)[alive], rtol=1e-4)


def test_learned_posterior_converges_to_the_exact_one(small_task, small_mdp, heads):
    """The road of environments without a finite MDP, on one that has one."""
    blind = dataclasses.replace(small_task, world=dataclasses.replace(small_task.world, mdp=None))
    observer = Posterior(blind, heads)
    clone = jax.jit(observer.fit)(jax.random.key(0), None)
    policies = jnp.exp(small_task.networks.tabulate_experts(heads))
    exact = jnp.exp(tabular.observer_weights(small_mdp, policies, "posterior"))
    learned = jnp.exp(jax.vmap(clone.log_weights)(jnp.arange(9)))
    alive = np.asarray(~small_mdp.terminal)
    np.testing.assert_allclose(np.asarray(learned)[alive], np.asarray(exact)[alive], atol=0.03)
