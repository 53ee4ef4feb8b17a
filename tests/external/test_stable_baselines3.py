"""An attacker that is none of ours: Minari's reader, stable-baselines3's policy, PyTorch's Adam.

What it gets by sampling and by acting greedily has to agree with what our own cloner gets.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from traps import ensemble

from ape_jax.algorithms.task import make_task
from ape_jax.config import PGConfig
from ape_jax.core import tabular
from ape_jax.demonstrations import collect
from ape_jax.demonstrations.minari import to_minari
from ape_jax.envs import GRIDWORLD, adapters
from ape_jax.evaluation import returns as evaluation
from ape_jax.observers import TabularCloning

REASON = 'not installed: pip install ".[test,attack]"'
torch = pytest.importorskip("torch", reason=f"torch is {REASON}")
minari = pytest.importorskip("minari", reason=f"minari is {REASON}")
pytest.importorskip("stable_baselines3", reason=f"stable-baselines3 is {REASON}")

from stable_baselines3.common.policies import ActorCriticPolicy  # noqa: E402

NUM_STEPS = 40_000
NUM_EPISODES = 200


@pytest.fixture(scope="module")
def task():
    return make_task(PGConfig())


@pytest.fixture(scope="module")
def shown(task):
    return collect.collect(jax.random.key(0), task, ensemble(), NUM_STEPS)[0]


@pytest.fixture(scope="module")
def attacker(shown, tmp_path_factory):
    """Behaviour cloning of the dataset as anyone would write it with these libraries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("datasets")))
        to_minari("gridworld/traps-v0", GRIDWORLD, shown)
        dataset = minari.load_dataset("gridworld/traps-v0")
        episodes = list(dataset.iterate_episodes())
    observations = torch.as_tensor(np.concatenate([e.observations[:-1] for e in episodes]))
    actions = torch.as_tensor(np.concatenate([e.actions for e in episodes]))
    torch.manual_seed(0)
    torch.set_num_threads(1)  # The network is small, and threads get in each other's way.
    policy = ActorCriticPolicy(
        dataset.observation_space, dataset.action_space, lambda _: 1e-2, net_arch=[64]
    )
    num_updates = 1500
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(policy.optimizer, num_updates)
    for _ in range(num_updates):
        rows = torch.randint(len(actions), (1024,))
        _, log_probs, _ = policy.evaluate_actions(observations[rows], actions[rows])
        policy.optimizer.zero_grad()
        (-log_probs.mean()).backward()
        policy.optimizer.step()
        rate.step()
    policy.set_training_mode(False)
    return policy


@pytest.fixture(scope="module")
def ours(task, shown):
    """Exact returns of our cloner: sampled, greedy."""
    cloner = TabularCloning(task.world.mdp.num_states, task.world.mdp.num_actions)
    clone = cloner.fit(jax.random.key(1), shown)
    return {
        deployed: float(evaluation.expected_return(task.world, policy, jax.random.key(2)))
        for deployed, policy in (("sampled", clone), ("greedy", evaluation.greedy(clone)))
    }


def test_the_case_tells_sampled_and_greedy_clones_apart(ours):
    assert ours["sampled"] > ours["greedy"] + 20


@pytest.mark.parametrize("deployed", ["sampled", "greedy"])
def test_attacker_gets_what_our_cloner_gets(deployed, attacker, ours):
    """Mean of its episodes in the Gymnasium environment, at four standard errors."""
    torch.manual_seed(1)
    returns = adapters.score(
        lambda cell: attacker.predict(cell, deterministic=deployed == "greedy")[0],
        GRIDWORLD,
        NUM_EPISODES,
        seed=3,
    )
    error = returns.std(ddof=1) / np.sqrt(NUM_EPISODES)
    numbers = f"{returns.mean():.2f} ± {error:.2f} against {ours[deployed]:.2f}"
    print(f"{deployed}: stable-baselines3 {numbers}")
    assert abs(returns.mean() - ours[deployed]) < 4 * error


def test_attacker_s_policy_is_worth_the_same_exactly(task, attacker, ours):
    """Its probabilities as a table, on the finite MDP: fitting error alone is left."""
    with torch.no_grad():
        distribution = attacker.get_distribution(torch.arange(task.world.mdp.num_states))
        probs = jnp.asarray(distribution.distribution.probs.numpy())
    greedy = jax.nn.one_hot(jnp.argmax(probs, axis=-1), task.world.mdp.num_actions)
    exact = float(tabular.policy_return(task.world.mdp, probs))
    print(f"exact: sampled {exact:.2f} against {ours['sampled']:.2f}")
    assert abs(exact - ours["sampled"]) < 0.5
    exact = float(tabular.policy_return(task.world.mdp, greedy))
    print(f"exact: greedy {exact:.2f} against {ours['greedy']:.2f}")
    assert abs(exact - ours["greedy"]) < 0.5
