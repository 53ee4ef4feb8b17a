import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand_made import Known, show, table

from ape_jax.core import tabular
from ape_jax.core.distributions import Categorical
from ape_jax.core.policies import TablePolicy
from ape_jax.evaluation.deployment import deploy_candidates
from ape_jax.evaluation.returns import policy_table
from ape_jax.observers import BestTemperature, Epsilon, TabularCloning
from ape_jax.observers.best_temperature import TEMPERATURES
from ape_jax.observers.candidates import Candidates
from ape_jax.observers.epsilon import EPSILONS, EpsilonPolicy


@pytest.fixture(scope="module")
def policy(random_policies):
    """A policy [S, A] that is far from uniform and from greedy."""
    sharper = jnp.square(random_policies[0])
    return sharper / jnp.sum(sharper, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def shown(small_task, policy):
    return show(small_task.world, policy, 16_000)


@jax.jit
def chosen(shown, clone):
    """Index of the temperature that is likeliest, for the counts and for a clone."""
    key = jax.random.key(0)
    return (
        BestTemperature(TabularCloning(9, 5)).fit(key, shown).chosen,
        BestTemperature(Known(clone)).fit(key, shown).chosen,
    )


@pytest.mark.parametrize("seed", range(3))
def test_the_likeliest_temperature_undoes_what_the_clone_did(seed, small_task, policy):
    """One for counts; T = ½ where the clone is the root of the policy, which is too random."""
    smooth = table(jnp.sqrt(policy) / jnp.sum(jnp.sqrt(policy), axis=-1, keepdims=True))
    found = chosen(show(small_task.world, policy, 16_000, seed), smooth)
    assert [TEMPERATURES[index] for index in found] == [1.0, 0.5]


def test_every_temperature_is_there(shown):
    clone = TabularCloning(9, 5).fit(jax.random.key(0), shown)
    offered = BestTemperature(Known(clone)).fit(jax.random.key(0), shown)
    counts = policy_table(clone, 9)
    for index, temperature in enumerate(TEMPERATURES):
        one = policy_table(jax.tree.map(lambda x, index=index: x[index], offered.policies), 9)
        if temperature == 0.0:
            expected = np.asarray(counts) == np.max(counts, axis=-1, keepdims=True)
        else:
            expected = np.asarray(counts) ** (1 / temperature)
        expected = expected / expected.sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(one, expected, atol=1e-5)


def test_as_a_policy_it_is_the_chosen_one(policy):
    both = Categorical(jnp.log(jnp.stack([policy, policy[:, ::-1]])))
    for index, expected in enumerate((policy, policy[:, ::-1])):
        ours = Candidates(TablePolicy(both), jnp.int32(index))
        np.testing.assert_allclose(policy_table(ours, 9), expected, rtol=1e-5)


@pytest.mark.parametrize("observer", [BestTemperature, Epsilon])
def test_the_best_that_is_tried_returns_most(observer, small_task, small_mdp, shown):
    offered = observer(TabularCloning(9, 5)).fit(jax.random.key(0), shown)
    found = jax.jit(deploy_candidates, static_argnums=(0, 4))(
        small_task.world, offered, shown, jax.random.key(0), 256
    )
    every = [
        tabular.policy_return(
            small_mdp, policy_table(jax.tree.map(lambda x, i=i: x[i], offered.policies), 9)
        )
        for i in range(len(jax.tree.leaves(offered.policies)[0]))
    ]
    assert np.ptp(every) > 0.1
    assert float(found["best"].clone_return) == pytest.approx(float(max(every)), rel=1e-5)
    own = every[int(offered.chosen)]
    assert float(found["own"].clone_return) == pytest.approx(float(own), rel=1e-5)


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_an_epsilon_policy_is_the_mixture_of_greedy_and_sampled(epsilon, policy):
    ours = np.asarray(policy_table(EpsilonPolicy(table(policy), epsilon), 9))
    best = np.eye(5)[np.argmax(policy, axis=-1)]
    np.testing.assert_allclose(ours, epsilon * policy + (1 - epsilon) * best, atol=1e-6)
    np.testing.assert_allclose(ours.sum(axis=-1), 1.0, rtol=1e-5)


def test_epsilon_finds_the_share_of_sampled_steps(small_task, random_policies):
    """Demonstrators who sample in two steps of five, and a clone of what they sample from."""
    policy = random_policies[1]
    best = jnp.eye(5)[jnp.argmax(policy, axis=-1)]
    demonstrator = 0.4 * policy + 0.6 * best
    fit = jax.jit(Epsilon(Known(table(policy))).fit)
    for seed in range(3):
        fitted = fit(jax.random.key(0), show(small_task.world, demonstrator, 16_000, seed))
        assert EPSILONS[int(fitted.chosen)] == 0.4


def test_one_action_only_stays_finite(shown):
    """Counts hold zeros: their logarithms must not become NaN in a mixture."""
    same = shown._replace(action=jnp.zeros_like(shown.action))
    for observer in (BestTemperature, Epsilon):
        offered = observer(TabularCloning(9, 5)).fit(jax.random.key(0), same)
        visited = np.unique(shown.observation)
        expected = np.eye(5)[np.zeros(len(visited), int)]
        np.testing.assert_allclose(policy_table(offered, 9)[visited], expected, atol=1e-6)
