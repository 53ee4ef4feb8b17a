"""Attackers that are none of ours: behaviour cloning and offline reinforcement learning of d3rlpy.

They read the exported dataset, fit networks of PyTorch, and act greedily. In both worlds here a
greedy clone does worse than the demonstrators, and offline reinforcement learning does better. So
an attacker gets what ours gets only if it computes the same.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from traps import ensemble

from ape_jax.algorithms.task import make_task
from ape_jax.config import PGConfig, PPOConfig
from ape_jax.core import tabular
from ape_jax.core.distributions import Categorical
from ape_jax.demonstrations.collect import collect, pool
from ape_jax.demonstrations.minari import to_minari
from ape_jax.envs import GRIDWORLD, adapters
from ape_jax.evaluation import returns as evaluation
from ape_jax.evaluation.intervals import Interval
from ape_jax.observers import BehaviourCloning, ImplicitQ, OfflineQ, TabularCloning

REASON = 'not installed: pip install ".[test,outside]" && pip install --no-deps d3rlpy'
minari = pytest.importorskip("minari", reason=f"minari is {REASON}")
torch = pytest.importorskip("torch", reason=f"torch is {REASON}")
d3rlpy = pytest.importorskip("d3rlpy", reason=f"d3rlpy is {REASON}")

CATCH = "Catch-bsuite"
SEEDS = range(4)
"""Each with demonstrations and fits of its own."""
ATTACKERS = ("clone", "offline")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The networks are small, and threads get in each other's way."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def exported(name, env_id, shown, encode):
    """Demonstrations as d3rlpy reads them from their Minari dataset, with vectors to observe."""
    to_minari(name, env_id, shown)
    dataset = minari.load_dataset(name)
    episodes = list(dataset.iterate_episodes())
    # Minari has one observation after the last action, and d3rlpy's constructor takes none.
    observations = np.concatenate([episode.observations[:-1] for episode in episodes])
    fields = ("actions", "rewards", "terminations", "truncations")
    return d3rlpy.dataset.MDPDataset(
        encode(observations),
        *(np.concatenate([getattr(episode, name) for episode in episodes]) for name in fields),
        action_space=d3rlpy.ActionSpace.DISCRETE,
        action_size=int(dataset.action_space.n),
    )


def learned(attacker, dataset, seed):
    """d3rlpy's attacker, as a function of vectors [N, D] to greedy actions [N].

    Offline it is conservative Q-learning (Kumar et al., arXiv 2006.04779), with a tenth of the
    default weight on actions that were shown often: the experts' usual actions are the bad ones.
    """
    num_updates = {"clone": 300, "offline": 1500}[attacker]
    falling = d3rlpy.optimizers.CosineAnnealingLRFactory(T_max=num_updates)
    settings = {
        "batch_size": 64,
        "optim_factory": d3rlpy.optimizers.AdamFactory(lr_scheduler_factory=falling),
        "encoder_factory": d3rlpy.models.VectorEncoderFactory([64, 64]),
    }
    if attacker == "clone":
        config = d3rlpy.algos.DiscreteBCConfig(learning_rate=1e-2, **settings)
    else:
        config = d3rlpy.algos.DiscreteCQLConfig(
            learning_rate=3e-3, target_update_interval=50, alpha=0.1, **settings
        )
    d3rlpy.seed(seed)
    algorithm = config.create()
    algorithm.fit(
        dataset,
        n_steps=num_updates,
        n_steps_per_epoch=num_updates,
        logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
        show_progress=False,
    )
    return algorithm.predict


def one_hot(cells):
    return np.eye(100, dtype=np.float32)[cells]


def as_vectors(images):
    return images.reshape(len(images), -1).astype(np.float32)


def on_grid(seed):
    """Exact returns: d3rlpy's policy is read off in every cell."""
    task = make_task(PGConfig())
    mdp = task.world.mdp
    key_shown, key = jax.random.split(jax.random.key(seed))
    shown = collect(key_shown, task, ensemble(), 20_000)[0]
    observers = {
        "clone": TabularCloning(mdp.num_states, mdp.num_actions),
        "offline": OfflineQ(mdp.num_states, mdp.num_actions, mdp.horizon),
    }
    dataset = exported(f"gridworld/seed{seed}-v0", GRIDWORLD, shown, one_hot)

    def outcome(attacker):
        policy = evaluation.greedy(observers[attacker].fit(key, shown))
        actions = learned(attacker, dataset, seed)(one_hot(np.arange(mdp.num_states)))
        theirs = tabular.policy_return(mdp, jax.nn.one_hot(actions, mdp.num_actions))
        return float(evaluation.expected_return(task.world, policy, key)), float(theirs)

    return {attacker: outcome(attacker) for attacker in ATTACKERS}


def catchers(observation, expert):
    """One of three experts. Two of them run away when the ball falls left of the middle."""
    ball, paddle = jnp.argmax(jnp.max(observation[:-1], axis=0)), jnp.argmax(observation[-1])
    action = 1 + jnp.sign(ball - paddle)
    action = jnp.where((expert > 0) & (ball < 2), 2, action)
    return Categorical(jnp.log(0.85 * jax.nn.one_hot(action, 3) + 0.05)).for_sampling()


FIT = jax.jit(lambda observer, key, shown: observer.fit(key, shown), static_argnums=0)


def on_catch(seed):
    """Mean returns of the same 100 episodes: all play in the Gymnasium environment."""
    task = make_task(PPOConfig(env=CATCH, head="mlp", hidden_sizes=(32, 32), num_experts=1))
    key_shown, key = jax.random.split(jax.random.key(seed))
    shown = pool(key_shown, task.world, catchers, 3, 6_000)[0]
    networks = task.networks
    observers = {
        "clone": BehaviourCloning(networks, num_updates=400, batch_size=512, learning_rate=3e-3),
        "offline": ImplicitQ(networks, num_updates=2000),
    }
    dataset = exported(f"catch/seed{seed}-v0", CATCH, shown, as_vectors)
    world = adapters.to_gymnasium(CATCH)

    def played(actions):
        returns = adapters.score(lambda x: actions(as_vectors(x[None]))[0], world, 100, seed)
        return float(returns.mean())

    def outcome(attacker):
        policy = FIT(observers[attacker], key, shown)
        log_probs = jax.jit(lambda x: policy.distribution(x.reshape(10, 5)).log_probs)
        theirs = played(learned(attacker, dataset, seed))
        return played(lambda x: [np.argmax(log_probs(x[0]))]), theirs

    return {attacker: outcome(attacker) for attacker in ATTACKERS}


WORLDS = {"gridworld": (on_grid, 0.5), "catch": (on_catch, 0.1)}
"""The comparison in each world, and the largest difference of mean returns there.

Greedy clones are 35 below the best policy on the gridworld, and 0.8 in Catch.
"""


@pytest.fixture(scope="module", params=WORLDS)
def compared(request, tmp_path_factory):
    """Tolerance, and the returns (ours, theirs) of each attacker over seeds [2, K]."""
    outcomes, tolerance = WORLDS[request.param]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("datasets")))
        found = [outcomes(seed) for seed in SEEDS]
    returns = {attacker: np.transpose([one[attacker] for one in found]) for attacker in ATTACKERS}
    for attacker, (ours, theirs) in returns.items():
        print(f"{request.param}, {attacker}: ours {ours.round(3)}, d3rlpy {theirs.round(3)}")
    return tolerance, returns


@pytest.mark.parametrize("attacker", ATTACKERS)
def test_attackers_of_d3rlpy_get_what_ours_get(attacker, compared):
    """The whole interval of the mean difference is within the tolerance."""
    tolerance, returns = compared
    difference = Interval.of_differences(*returns[attacker])
    print(f"{attacker}: ours − d3rlpy {difference.mean:.3f}, interval {difference.ends}")
    assert -tolerance < difference.low <= difference.high < tolerance


def test_worlds_tell_the_attackers_apart(compared):
    tolerance, returns = compared
    for clone, offline in zip(returns["clone"], returns["offline"], strict=True):
        assert Interval.of_differences(offline, clone).low > 4 * tolerance
