"""The ideal sampling cloner returns what the ensemble returns: the posterior p(c|s) sees to that.

Its state-action occupancy is the experts' average, so its return is J(PE), whatever the experts do,
but for episodes that the time limit cuts (``tabular.cloning_floor``). The paper's uniform mixture
has no such property: each test shows that it returns something else, or could not fail.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces
from gymnax.environments.classic_control.pendulum import Pendulum

from ape_jax import algorithms
from ape_jax.algorithms import exact
from ape_jax.algorithms.task import make_task
from ape_jax.config import PGConfig, PGHypers, PPOConfig
from ape_jax.core import tabular
from ape_jax.evaluation import returns
from ape_jax.networks import HeadPolicy
from ape_jax.observers import Mixture, Posterior

NUM_BATCHES, BATCH = 16, 256
"""Batches, and episodes in each, behind each sampled return."""


class Estimate(NamedTuple):
    """A return, and its standard error."""

    mean: float
    error: float

    def __sub__(self, other):
        return Estimate(self.mean - other.mean, float(np.hypot(self.error, other.error)))


@partial(jax.jit, static_argnums=(0, 3))
def sampled_returns(task, heads, key, posterior):
    """Means of batches [batches], of the ensemble, its ideal clone and its uniform mixture."""
    key_fit, key_clone, key_mixture, key_experts = jax.random.split(key, 4)
    networks = task.networks

    def batches(policy, key):
        keys = jax.random.split(key, NUM_BATCHES)
        return jax.lax.map(lambda k: returns.expected_return(task.world, policy, k, BATCH), keys)

    keys = jax.random.split(key_experts, networks.num_experts)
    experts = jax.vmap(batches)(HeadPolicy(heads, networks), keys)
    clone = posterior(task, heads).fit(key_fit, None)
    mixture = Mixture(networks, heads).fit(key_fit, None)
    return jnp.mean(experts, axis=0), batches(clone, key_clone), batches(mixture, key_mixture)


def estimates(*arguments):
    """The estimates of ensemble, clone and mixture."""
    return [
        Estimate(float(x.mean()), float(x.std(ddof=1) / np.sqrt(len(x))))
        for x in map(np.asarray, sampled_returns(*arguments))
    ]


def assert_only_the_posterior_returns_what_the_ensemble_does(task, heads, key, posterior, slack=0):
    """Within four standard errors; the uniform mixture misses by more than twice as many."""
    ensemble, clone, mixture = estimates(task, heads, key, posterior)
    assert abs((clone - ensemble).mean) <= 4.0 * (clone - ensemble).error + slack
    assert abs((mixture - ensemble).mean) > 8.0 * (mixture - ensemble).error + slack


@pytest.fixture(scope="module")
def lake():
    return make_task(PGConfig(env="FrozenLake-misc"))


def test_exact_clone_of_random_experts_returns_what_they_do(lake):
    """A return is one at most, so episodes that were cut can bring no more than their share."""
    mdp = lake.world.mdp
    heads = 3.0 * jax.random.normal(jax.random.key(0), (200, 3, mdp.num_states, mdp.num_actions))

    @jax.jit
    @jax.vmap
    def of_ensemble(logits):
        policies = jax.nn.softmax(logits)
        clone = Posterior(lake, {"params": {"table": logits}}).fit(jax.random.key(0), None)
        return (
            jnp.mean(jax.vmap(tabular.policy_return, (None, 0))(mdp, policies)),
            returns.expected_return(lake.world, clone, jax.random.key(0)),
            tabular.policy_return(mdp, jnp.mean(policies, axis=0)),
            tabular.cloning_floor(mdp, policies),
            jnp.mean(jnp.sum(jax.vmap(tabular.reach_limit, (None, 0))(mdp, policies), axis=-1)),
        )

    ensemble, clone, mixture, floor, truncated = (np.asarray(x) for x in of_ensemble(heads))
    assert np.all(clone >= floor - 1e-5)
    assert np.all(clone >= ensemble - mdp.horizon * truncated - 1e-5)
    assert np.all(clone <= ensemble + truncated + 1e-5)
    outside = (mixture < floor - 1e-3) | (mixture > ensemble + truncated + 1e-3)
    assert outside.sum() > 20


@pytest.mark.slow
def test_sampled_clone_returns_what_the_ensemble_does_on_frozen_lake():
    """With the classifier of environments that have no finite MDP, and few episodes cut short."""
    config = PGConfig(env="FrozenLake-misc", env_param=("max_steps_in_episode=300",))
    lake = make_task(config)
    logits = exact.train(jax.random.key(1), lake.world.mdp, 0.6, num_updates=300)
    policies = jax.nn.softmax(logits)
    exact_returns = jax.vmap(tabular.policy_return, (None, 0))(lake.world.mdp, policies)
    slack = float(jnp.mean(exact_returns) - tabular.cloning_floor(lake.world.mdp, policies))
    assert 0 <= slack < 0.01
    assert_only_the_posterior_returns_what_the_ensemble_does(
        dataclasses.replace(lake, world=dataclasses.replace(lake.world, mdp=None)),
        {"params": {"table": logits}},
        jax.random.key(2),
        Posterior,
        slack,
    )


@pytest.mark.slow
def test_sampled_clone_returns_what_the_ensemble_does_on_catch():
    """Experts trained so that the ball is missed by those who draw one of them at every state."""
    config = PGConfig(
        env="Catch-bsuite",
        env_param=("max_steps_in_episode=10",),  # The ball is down after nine.
        head="mlp",
        hidden_sizes=(32,),
        envs_per_expert=32,
        num_updates=300,
    )
    task = make_task(config)
    hypers = PGHypers(beta=0.6, learning_rate=3e-3, critic_learning_rate=1e-2)
    state, _ = jax.jit(algorithms.make_train(config))(jax.random.key(0), hypers)
    posterior = partial(Posterior, num_updates=2000, num_steps=200_000)
    assert_only_the_posterior_returns_what_the_ensemble_does(
        task, state.params.heads, jax.random.key(1), posterior
    )


LIMIT = 40


class ClockedPendulum(Pendulum):
    """Pendulum that shows the time: its limit is an end that is seen coming, and cuts nothing."""

    def get_obs(self, state, params=None, key=None):
        return jnp.append(super().get_obs(state), state.time / LIMIT)

    def observation_space(self, params):
        high = jnp.array([1.0, 1.0, params.max_speed, 1.0])
        return spaces.Box(-high, high, (4,))


@pytest.mark.slow
def test_sampled_clone_returns_what_the_ensemble_does_with_continuous_actions():
    """Experts who push to the left and to the right: who draws one at every step gets nowhere."""
    env = ClockedPendulum()
    config = PPOConfig(head="gaussian", hidden_sizes=(8,), observer="uniform")
    task = make_task(config, env, env.default_params.replace(max_steps_in_episode=LIMIT))
    params = task.networks.init(jax.random.key(2)).heads["params"]
    last = {
        "kernel": 30.0 * params["body"]["Dense_1"]["kernel"],
        "bias": jnp.array([[-2.0], [2.0]]),
    }
    heads = {"params": {**params, "body": {**params["body"], "Dense_1": last}}}
    posterior = partial(Posterior, num_updates=2000, num_steps=200_000)
    assert_only_the_posterior_returns_what_the_ensemble_does(
        task, heads, jax.random.key(3), posterior
    )
