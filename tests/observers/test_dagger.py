import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ape_jax.core import tabular
from ape_jax.demonstrations import collect
from ape_jax.evaluation import returns
from ape_jax.evaluation.defences import as_tables
from ape_jax.observers import Dagger, TabularCloning


def fit(task, policies, num_steps=40_000):
    heads = as_tables(jnp.log(jnp.maximum(policies, 1e-9)))

    @jax.jit
    def attack(key):
        shown, _ = collect.collect(key, task, heads, num_steps)
        clone = Dagger(task, heads, TabularCloning(9, 5)).fit(key, shown)
        return returns.policy_table(clone, 9)

    return attack(jax.random.key(0))


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
    """What DAgger asks for shows the uniform mixture, where demonstrations show the posterior."""
    policies = jnp.stack([random_policies[0], tabular.optimal_policy(small_mdp)])
    heads = as_tables(jnp.log(jnp.maximum(policies, 1e-9)))
    observer = Dagger(small_task, heads, TabularCloning(9, 5))
    clone = TabularCloning(9, 5).fit(
        jax.random.key(0), collect.collect(jax.random.key(1), small_task, heads, 5_000)[0]
    )
    answered = observer.query(jax.random.key(2), clone, 60_000)
    ours = returns.policy_table(TabularCloning(9, 5).fit(jax.random.key(0), answered), 9)
    alive = np.asarray(~small_mdp.terminal)
    uniform = np.asarray(jnp.mean(policies, axis=0))[alive]
    np.testing.assert_allclose(np.asarray(ours)[alive], uniform, atol=0.04)
    weights = jnp.exp(tabular.observer_weights(small_mdp, policies, "posterior"))
    posterior = np.asarray(jnp.einsum("se,esa->sa", weights, policies))[alive]
    assert np.abs(posterior - uniform).max() > 0.1
