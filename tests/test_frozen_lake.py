import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments.misc.frozen_lake import EnvState, FrozenLake

from ape_jax.core import tabular
from ape_jax.core.distributions import Categorical
from ape_jax.core.policies import TablePolicy
from ape_jax.envs import GridWorld, finite_mdp, make, rollout
from ape_jax.envs.world import World
from ape_jax.types import SettingError

NUM_DRAWS = 1000

LAKES = {
    "4x4": FrozenLake(),
    "8x8": FrozenLake(map_name="8x8"),
    "no slip, whatever the rate": FrozenLake(is_slippery=False, success_rate=0.2),
    "always a slip": FrozenLake(success_rate=0.0),
    "own map, rate and rewards": FrozenLake(
        desc=("FGHF", "FFSF"), success_rate=0.6, reward_schedule=(2.0, -1.0, -0.1)
    ),
    "one row": FrozenLake(desc=("SFG",)),
}


@pytest.fixture(params=LAKES.values(), ids=LAKES.keys())
def lake(request):
    return request.param


def test_mdp_equals_the_frequencies_of_the_environment(lake):
    """Every tile, holes and goal too, within five standard errors; the impossible never happens."""
    params = lake.default_params
    mdp = finite_mdp(lake, params)

    def step(key, tile, action):
        state = EnvState(position=tile, time=jnp.int32(0))
        observation, state, reward, terminated, _ = lake.step_env(key, state, action, params)
        return observation, state.position, reward, terminated

    over_draws = jax.vmap(step, in_axes=(0, None, None))
    over_actions = jax.vmap(over_draws, in_axes=(None, None, 0))
    observation, successor, reward, terminated = jax.jit(
        jax.vmap(over_actions, in_axes=(None, 0, None))
    )(
        jax.random.split(jax.random.key(0), NUM_DRAWS),
        jnp.arange(lake.n_states),
        jnp.arange(lake.num_actions),
    )  # [S, A, draws]
    successor = np.asarray(successor)
    np.testing.assert_array_equal(observation, successor)
    np.testing.assert_array_equal(terminated, np.asarray(mdp.terminal)[successor])

    shares = np.stack([(successor == s).mean(axis=-1) for s in range(lake.n_states)], axis=-1)
    expected = np.asarray(mdp.transition, np.float64)
    errors = np.sqrt(expected * (1.0 - np.minimum(expected, 1.0)) / NUM_DRAWS)
    assert np.all(np.abs(shares - expected) <= 5.0 * errors + 1e-6)

    rewards = np.asarray(reward, np.float64)
    errors = rewards.std(axis=-1) / np.sqrt(NUM_DRAWS)
    assert np.all(np.abs(rewards.mean(axis=-1) - mdp.reward) <= 5.0 * errors + 1e-6)


def test_mdp_is_made_of_distributions(lake):
    mdp = finite_mdp(lake, lake.default_params)
    assert mdp.transition.shape == (lake.n_states, 4, lake.n_states)
    assert mdp.reward.shape == (lake.n_states, 4)
    assert {x.dtype for x in (mdp.transition, mdp.reward, mdp.start)} == {jnp.dtype("float32")}
    assert np.all(np.asarray(mdp.transition) >= 0)
    np.testing.assert_allclose(jnp.sum(mdp.transition, axis=-1), 1.0, rtol=1e-6)
    observation, _ = lake.reset(jax.random.key(0), lake.default_params)
    np.testing.assert_array_equal(mdp.start, np.arange(lake.n_states) == int(observation))


def test_holes_and_goal_are_terminal():
    """The map is Gymnasium's of 4 x 4: SFFF FHFH FFFH HFFG."""
    env, params = make("FrozenLake-misc")
    np.testing.assert_array_equal(
        np.flatnonzero(finite_mdp(env, params).terminal), [5, 7, 11, 12, 15]
    )


def test_best_policy_without_slips_reaches_the_goal_just_in_time():
    """The goal is six steps from the start: within the limit it is worth 1, else nothing."""
    env = FrozenLake(is_slippery=False)
    for limit, expected in ((6, 1.0), (5, 0.0)):
        mdp = finite_mdp(env, env.default_params.replace(max_steps_in_episode=limit))
        assert float(jnp.max(mdp.start @ tabular.optimal_action_values(mdp))) == expected


@pytest.mark.parametrize(
    ("lake", "limit"),
    [
        # Rewards on the way too: the goal alone is too rare for a standard error from the sample.
        (FrozenLake(reward_schedule=(1.0, -1.0, -0.05)), 40),
        (FrozenLake(is_slippery=False, reward_schedule=(1.0, -1.0, -0.05)), 8),
        (LAKES["own map, rate and rewards"], 12),
    ],
    ids=["slips", "no slips and a limit that binds", "own map, rate and rewards"],
)
def test_exact_return_of_a_random_policy_equals_the_sampled_one(lake, limit):
    """Within four standard errors; the lengths of episodes too."""
    params = lake.default_params.replace(max_steps_in_episode=limit)
    mdp = finite_mdp(lake, params)
    policy = jax.nn.softmax(jax.random.normal(jax.random.key(3), (lake.n_states, 4)))
    table = TablePolicy(Categorical(jnp.log(policy)))
    walk = jax.jit(rollout.episodes, static_argnums=2)
    steps = walk(jax.random.split(jax.random.key(4), 2048), table, World(lake, params, limit))
    returns, lengths = (np.asarray(x, np.float64).sum(axis=0) for x in (steps.reward, steps.mask))
    for sampled, exact in (
        (returns, tabular.policy_return(mdp, policy)),
        (lengths, jnp.sum(tabular.state_occupancy(mdp, policy))),
    ):
        error = sampled.std() / np.sqrt(len(sampled))
        assert error > 0
        assert abs(sampled.mean() - float(exact)) <= 4.0 * error


def test_overridden_limit_is_the_horizon():
    env, params = make("FrozenLake-misc", (("max_steps_in_episode", 17),))
    assert finite_mdp(env, params).horizon == 17


def test_parameters_of_the_constructor_are_not_environment_parameters():
    with pytest.raises(SettingError, match=r"got 'success_rate'\. Known: max_steps_in_episode$"):
        make("FrozenLake-misc", (("success_rate", 0.5),))
    env, _ = make("FrozenLake-misc", map_name="8x8", success_rate=0.5)
    assert (env.n_states, env.success_rate) == (64, 0.5)


class Whirlpool(FrozenLake):
    """Moves otherwise than its parent."""


class Charted(FrozenLake):
    def finite_mdp(self, params):
        return GridWorld(size=2).finite_mdp()


def test_mdp_of_a_subclass_is_its_own_or_none():
    assert finite_mdp(Whirlpool(), Whirlpool().default_params) is None
    assert finite_mdp(Charted(), Charted().default_params).num_states == 4
