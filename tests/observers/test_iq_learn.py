import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vectors
from gymnax.environments import spaces

from ape_jax.config import PPOConfig
from ape_jax.core.policies import tabulate
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.networks import make_networks
from ape_jax.observers.behaviour_cloning import TabularCloning
from ape_jax.observers.iq_learn import InverseSoftQ

NETWORK = InverseSoftQ(vectors.NETWORKS, num_updates=1500)


def distance(probs, others):
    """Total variation in each cell but the goal."""
    return 0.5 * jnp.sum(jnp.abs(probs - others), axis=-1)[1:]


@pytest.fixture(scope="module")
def expert():
    """Up where it can, else left: one action in each cell."""
    return jax.nn.one_hot(jnp.where(jnp.arange(len(vectors.CELLS)) < vectors.SIZE, 2, 0), 5)


def test_one_expert_is_recovered(expert):
    policy = vectors.fit(NETWORK, vectors.vectors([expert], 8_000))
    probs = vectors.table(policy)
    assert float(jnp.max(distance(probs, expert))) < 0.05
    assert vectors.exact_return(probs) == pytest.approx(vectors.exact_return(expert), abs=0.1)


def test_a_table_recovers_one_expert(expert):
    observer = InverseSoftQ(vectors.TASK.networks, num_updates=1500, learning_rate=3e-2)
    policy = vectors.fit(observer, vectors.states([expert], 8_000))
    probs = jnp.exp(tabulate(policy, len(vectors.CELLS)).table.log_probs)
    assert float(jnp.max(distance(probs, expert))) < 0.05


def test_two_experts_are_averaged():
    """One goes to the goal, the other strolls: the clone returns what they do on average."""
    experts = [0.9 * vectors.OPTIMAL + 0.1 * vectors.UNIFORM, vectors.UNIFORM]
    policy = vectors.fit(NETWORK, vectors.vectors(experts, 8_000))
    counted = TabularCloning(len(vectors.CELLS), 5)
    counts = vectors.fit(counted, vectors.states(experts, 8_000)).table.log_probs
    ours, clone = vectors.exact_return(vectors.table(policy)), vectors.exact_return(jnp.exp(counts))
    assert ours == pytest.approx(clone, abs=2.0)
    assert ours < vectors.exact_return(experts[0]) - 4


def test_without_the_regulariser_it_is_behaviour_cloning():
    """The oracle is the counts of actions."""
    expert = 0.5 * vectors.OPTIMAL + 0.5 * vectors.UNIFORM
    observer = InverseSoftQ(
        vectors.TASK.networks, num_updates=1500, learning_rate=3e-2, alpha=jnp.inf
    )
    shown = vectors.states([expert], 8_000)
    policy = vectors.fit(observer, shown)
    counts = vectors.fit(TabularCloning(len(vectors.CELLS), 5), shown)
    ours, expected = (
        jnp.exp(tabulate(x, len(vectors.CELLS)).table.log_probs) for x in (policy, counts)
    )
    assert float(jnp.max(distance(ours, expected))) < 0.1


def test_values_are_worth_the_rewards_that_they_imply():
    """One state, one action taken, an end after it: Q = 0 pays nothing, and π tends to one."""
    count = 64
    shown = Demonstrations(
        observation=jnp.zeros(count, jnp.int32),
        action=jnp.full(count, 3),
        reward=jnp.full(count, jnp.nan),
        terminated=jnp.ones(count, bool),
        truncated=jnp.zeros(count, bool),
        episode=jnp.arange(count),
    )
    observer = InverseSoftQ(vectors.TASK.networks, num_updates=2000, learning_rate=3e-2, alpha=0.5)
    policy = vectors.fit(observer, shown)
    q = policy.networks.head.apply(policy.params, jnp.int32(0))
    assert float(q[3]) == pytest.approx(0.0, abs=0.1)
    assert float(jax.nn.logsumexp(q)) == pytest.approx(float(q[3]), abs=0.1)


def test_images_are_accepted():
    bright = jnp.arange(256) % 2
    image = jnp.broadcast_to(bright[:, None, None, None].astype(jnp.float32), (256, 4, 4, 1))
    ends = jnp.ones(256, bool)
    shown = Demonstrations(image, bright, jnp.zeros(256), ends, ~ends, jnp.arange(256))
    config = PPOConfig(head="conv", hidden_sizes=(16,), num_experts=1)
    networks = make_networks(config, spaces.Box(0.0, 1.0, (4, 4, 1)), spaces.Discrete(2))
    policy = vectors.fit(InverseSoftQ(networks, num_updates=200), shown)
    for value in (0, 1):
        probs = np.exp(policy.distribution(jnp.full((4, 4, 1), float(value))).log_probs)
        assert probs[value] > 0.9


def test_steps_whose_successor_is_not_known_are_cloned():
    shown = vectors.ODD["one step each and no arrival"]
    shown = shown._replace(action=jnp.full_like(shown.action, 2))
    policy = vectors.fit(InverseSoftQ(vectors.NETWORKS, num_updates=200, alpha=1e-9), shown)
    assert float(policy.distribution(shown.observation[0]).log_prob(jnp.int32(2))) > -0.1


def test_little_data_gives_a_defined_policy():
    observer = InverseSoftQ(vectors.NETWORKS, num_updates=40)
    vectors.assert_defined_on_little_data(observer)
