from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ape_jax.core import tabular
from ape_jax.demonstrations import collect
from ape_jax.evaluation import returns
from ape_jax.evaluation.defences import as_tables
from ape_jax.observers import Dagger, TabularCloning


@partial(jax.jit, static_argnums=0)
def fit(task, policies):
    """Table of the clone that DAgger makes of these experts."""
    heads, key = as_tables(jnp.log(jnp.maximum(policies, 1e-9))), jax.random.key(0)
    shown, _ = collect.collect(key, task, heads, 40_000)
    return returns.policy_table(Dagger(task, heads, TabularCloning(9, 5)).fit(key, shown), 9)


@partial(jax.jit, static_argnums=0)
def ask(task, policies):
    """Clone by counts of what experts answer where a clone of theirs goes."""
    heads, cloning = as_tables(jnp.log(jnp.maximum(policies, 1e-9))), TabularCloning(9, 5)
    shown, _ = collect.collect(jax.random.key(1), task, heads, 5_000)
    clone = cloning.fit(jax.random.key(0), shown)
    answered = Dagger(task, heads, cloning).query(jax.random.key(2), clone, 60_000)
    return returns.policy_table(cloning.fit(jax.random.key(0), answered), 9)


def test_dagger_reaches_the_return_of_a_single_expert(small_task, small_mdp, random_policies):
    expert = random_policies[0]
    ours = tabular.policy_return(small_mdp, fit(small_task, jnp.stack([expert, expert])))
    expected = tabular.policy_return(small_mdp, expert)
    assert float(ours) == pytest.approx(float(expected), abs=0.06)


def test_dagger_learns_what_experts_would_do_where_they_never_go(small_task, small_mdp):
    """An expert that never leaves the top row answers for the bottom row as well."""
    values = tabular.optimal_action_values(small_mdp)
    expert = jax.nn.softmax(3.0 * values)
    answers = fit(small_task, jnp.stack([expert, expert]))
    alive = np.asarray(~small_mdp.terminal)
    np.testing.assert_allclose(np.asarray(answers)[alive], np.asarray(expert)[alive], atol=0.04)


def test_answers_weigh_the_experts_evenly(small_task, small_mdp, random_policies):
    """DAgger's answers show the uniform mixture, where demonstrations show the posterior."""
    policies = jnp.stack([random_policies[0], tabular.optimal_policy(small_mdp)])
    ours = ask(small_task, policies)
    alive = np.asarray(~small_mdp.terminal)
    uniform = np.asarray(jnp.mean(policies, axis=0))[alive]
    np.testing.assert_allclose(np.asarray(ours)[alive], uniform, atol=0.04)
    weights = jnp.exp(tabular.observer_weights(small_mdp, policies, "posterior"))
    posterior = np.asarray(jnp.einsum("se,esa->sa", weights, policies))[alive]
    assert np.abs(posterior - uniform).max() > 0.1
