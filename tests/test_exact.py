import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ape_jax.algorithms import exact
from ape_jax.core import platform, tabular


def test_ascend_without_updates_returns_logits_drawn_from_the_key(small_mdp):
    logits = exact.ascend(jax.random.key(3), small_mdp, lambda x, _: jnp.sum(x), 2, 0, 0.1)
    drawn = jax.random.normal(jax.random.key(3), (2, 9, 5))
    np.testing.assert_array_equal(logits, drawn)


def test_ascend_equals_a_loop_of_optax_steps_and_passes_progress(small_mdp):
    """Ascent is descent on the negative; the objective here changes as the run goes on."""
    num_updates = 5

    def objective_fn(logits, progress):
        return jnp.sum((1.0 + progress) * jnp.sin(logits))

    ours = exact.ascend(jax.random.key(0), small_mdp, objective_fn, 2, num_updates, 0.1, 0.2, 0.3)
    theirs = jax.random.normal(jax.random.key(0), (2, 9, 5))
    optimizer = optax.adamw(optax.cosine_decay_schedule(0.1, num_updates, 0.2), weight_decay=0.3)
    state = optimizer.init(theirs)
    for index in range(num_updates):
        gradient = -(1.0 + index / num_updates) * jnp.cos(theirs)
        updates, state = optimizer.update(gradient, state, theirs)
        theirs = theirs + updates
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_train_without_an_observer_makes_every_expert_optimal(small_mdp):
    logits = exact.train(jax.random.key(0), small_mdp, 0.0, num_updates=400)
    returns = [tabular.policy_return(small_mdp, jax.nn.softmax(x)) for x in logits]
    best = tabular.policy_return(small_mdp, tabular.optimal_policy(small_mdp))
    np.testing.assert_allclose(returns, [best, best], atol=0.05)


@pytest.mark.parametrize("weights", ["uniform", "posterior"])
def test_train_raises_its_objective(small_mdp, weights):
    settings = {"weights": weights, "temperature": 0.3}
    key, beta = jax.random.key(1), 0.3
    before, after = (
        tabular.exact_objective(logits, small_mdp, beta, **settings)
        for logits in (
            jax.random.normal(key, (2, 9, 5)),
            exact.train(key, small_mdp, beta, num_updates=100, **settings),
        )
    )
    assert after > before + 0.5


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_train_vmaps_over_keys_and_beta(small_mdp, name):
    keys, betas = jax.random.split(jax.random.key(2), 3), jnp.array([0.0, 0.3, 0.6])

    def one(key, beta, learning_rate):
        return exact.train(key, small_mdp, beta, num_updates=5, learning_rate=learning_rate)

    rates = jnp.array([0.05, 0.1, 0.02])
    with platform.tracing_for(name):
        together, single = jax.jit(jax.vmap(one))(keys, betas, rates), jax.jit(one)
        for row, key, beta, rate in zip(together, keys, betas, rates, strict=True):
            np.testing.assert_allclose(row, single(key, beta, rate), rtol=1e-3, atol=1e-3)


def test_train_has_a_derivative_in_beta(small_mdp):
    """The gap at the end is differentiated through every step; terminal states have no gradient."""

    def gap(beta):
        logits = exact.train(jax.random.key(4), mdp, beta, num_updates=20)
        policies = jax.nn.softmax(logits)
        experts = jax.vmap(tabular.policy_return, (None, 0))(mdp, policies)
        return jnp.mean(experts) - tabular.policy_return(mdp, jnp.mean(policies, axis=0))

    with jax.enable_x64(True):
        mdp = jax.tree.map(lambda x: jnp.array(x, float if x.dtype == "f4" else None), small_mdp)
        step = 1e-5
        gap, slope = jax.jit(gap), float(jax.jit(jax.grad(gap))(0.3))
        difference = float(gap(0.3 + step) - gap(0.3 - step)) / (2 * step)
    assert abs(slope) > 0.01
    np.testing.assert_allclose(slope, difference, rtol=1e-4)
