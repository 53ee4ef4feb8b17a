import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from probes import Probe

from ape_jax import envs
from ape_jax.core import tabular
from ape_jax.core.distributions import Categorical, Gaussian
from ape_jax.core.policies import ConstantPolicy, TablePolicy
from ape_jax.envs import GridWorld, rollout
from ape_jax.envs.world import World

UNIFORM = Categorical(jnp.full(5, -jnp.log(5.0)))
EPISODES = jax.jit(rollout.episodes, static_argnums=2)
RETURNS = jax.jit(rollout.episode_returns, static_argnums=2)
TOGETHER = jax.jit(rollout.ensemble_episodes, static_argnums=4)


def world_of(env, horizon, params=None):
    return World(env, env.default_params if params is None else params, horizon)


def always(*actions, size=5):
    """Policies that always take one action, stacked where there are several."""
    probs = jax.nn.one_hot(jnp.array(actions), size)
    return ConstantPolicy(Categorical(jnp.log(probs + 1e-9)))


def random_walk(env, num_steps, num_episodes=64):
    """Transitions [N, T]."""
    keys = jax.random.split(jax.random.key(0), num_episodes)
    steps = EPISODES(keys, ConstantPolicy(UNIFORM), world_of(env, num_steps))
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), steps)


@pytest.fixture(scope="module")
def walks(small_grid):
    return random_walk(small_grid, small_grid.horizon, 4096)


def test_episode_follows_the_transitions_of_the_world(walks, small_mdp):
    successors = np.asarray(jnp.argmax(small_mdp.transition, axis=-1))
    observation, action, mask = (
        np.asarray(x) for x in (walks.observation, walks.action, walks.mask)
    )
    moved = successors[observation[:, :-1], action[:, :-1]]
    both = mask[:, :-1] & mask[:, 1:]
    np.testing.assert_array_equal(observation[:, 1:][both], moved[both])


def test_episode_marks_what_ends_it_and_holds_still_after(walks, small_mdp):
    mask, terminated, truncated = (
        np.asarray(x) for x in (walks.mask, walks.terminated, walks.truncated)
    )
    ends = terminated | truncated
    last = mask.sum(axis=1) - 1
    assert np.all(ends.sum(axis=1) == 1)
    assert np.all(ends[np.arange(len(last)), last])
    assert not np.any(terminated & truncated)
    assert np.all(last[truncated.any(axis=1)] == small_mdp.horizon - 1)
    np.testing.assert_array_equal(np.asarray(walks.reward), np.where(mask, -1.0, 0.0))
    assert 0 < truncated.any(axis=1).mean() < 1


def test_episode_returns_and_visits_match_the_exact_ones(walks, small_mdp):
    """No step of a next episode leaks into a return: the mean lies within four standard errors."""
    policy = jnp.full((9, 5), 0.2)
    returns = np.asarray(walks.reward).sum(axis=1)
    error = returns.std(ddof=1) / np.sqrt(len(returns))
    assert abs(returns.mean() - float(tabular.policy_return(small_mdp, policy))) < 4 * error
    counts = np.bincount(np.asarray(walks.observation)[np.asarray(walks.mask)], minlength=9) / len(
        returns
    )
    np.testing.assert_allclose(counts, tabular.state_occupancy(small_mdp, policy), atol=0.06)


def test_episode_cut_before_the_limit_is_not_marked_truncated(small_grid):
    walks = random_walk(small_grid, 2)
    assert not np.any(walks.truncated)


@pytest.mark.parametrize("env_id", ["GridWorld-ape", "Catch-bsuite"])
def test_each_expert_acts_in_its_block_and_the_observer_in_its_own(env_id):
    """Expert c always takes an action of its own, the observer a third, and nobody else does; with
    and without tables of what each does in every state."""
    env, params = envs.make(env_id)
    world = world_of(env, 8, params)
    size = world.num_actions
    keys = jax.random.split(jax.random.key(1), (2, 6))
    observer = ConstantPolicy(jax.tree.map(lambda x: x[0], always(2, size=size).constant))
    experts, observed = TOGETHER(keys, keys.reshape(-1), always(0, 1, size=size), observer, world)
    assert experts.action.shape == (8, 2, 6)
    np.testing.assert_array_equal(experts.action[:, 0], 0)
    np.testing.assert_array_equal(experts.action[:, 1], 1)
    assert observed.action.shape == (8, 12)
    np.testing.assert_array_equal(observed.action, 2)


def test_stream_draws_an_expert_for_each_episode_and_keeps_it(small_grid):
    """Expert 0 stays put for ever and expert 1 walks, so a switch inside an episode would show."""
    stay_or_walk = jnp.stack([always(4).constant.log_probs[0], UNIFORM.log_probs])
    steps, expert = jax.jit(
        lambda keys: rollout.stream(
            keys,
            lambda _, expert: Categorical(stay_or_walk[expert]),
            2,
            world_of(small_grid, small_grid.default_params.max_steps_in_episode),
            2_000,
        )
    )(jax.random.split(jax.random.key(3), 10))
    expert, action = np.asarray(expert), np.asarray(steps.action)
    ends = np.asarray(steps.terminated | steps.truncated)
    assert np.all((expert[1:] == expert[:-1]) | ends[:-1])
    assert np.all(action[expert == 0] == 4)
    starts = np.concatenate([np.ones((1, 10), bool), ends[:-1]])
    share = expert[starts].mean()
    assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(starts.sum())


CONTINUOUS = {
    "MountainCarContinuous-v0",
    "Pendulum-v1",
    "PointRobot-misc",
    "Reacher-misc",
    "Swimmer-misc",
}
DOWNLOADS = {"MNISTBandit-bsuite"}


@pytest.mark.parametrize("env_id", sorted({*gymnax.registered_envs} - CONTINUOUS - DOWNLOADS))
def test_every_discrete_gymnax_environment_can_be_rolled_out(env_id):
    """Traced, not run: shapes and types of every environment fit the one loop that steps them."""
    env, params = envs.make(env_id)
    world = world_of(env, 5, params)
    acts = Categorical(jnp.zeros(world.num_actions))
    keys = jax.random.split(jax.random.key(0), 1)
    shapes = jax.eval_shape(lambda keys: rollout.episodes(keys, ConstantPolicy(acts), world), keys)
    assert shapes.reward.shape == shapes.mask.shape == (5, 1)
    assert shapes.observation.shape == (5, 1, *world.observation_space.shape)
    streamed, expert = jax.eval_shape(
        lambda keys: rollout.stream(keys, lambda *_: acts, 1, world, 5), keys
    )
    assert jax.tree.map(jnp.shape, streamed) == jax.tree.map(jnp.shape, shapes)
    assert expert.shape == (5, 1)


def test_gridworld_of_any_size_runs_to_its_own_limit():
    walks = random_walk(GridWorld(12, (11, 11), horizon=5), 5)
    assert np.asarray(walks.mask).sum(axis=1).max() == 5


def test_next_observation_is_the_true_successor_also_at_an_end(walks, small_mdp):
    successors = np.asarray(jnp.argmax(small_mdp.transition, axis=-1))
    mask = np.asarray(walks.mask)
    moved = successors[np.asarray(walks.observation), np.asarray(walks.action)]
    np.testing.assert_array_equal(np.asarray(walks.next_observation)[mask], moved[mask])


def test_stream_has_next_observations_from_before_the_reset(small_grid, small_mdp):
    world = world_of(small_grid, 8)
    stream = jax.jit(lambda keys: rollout.stream(keys, lambda *_: UNIFORM, 1, world, 500))
    steps, _ = stream(jax.random.split(jax.random.key(3), 1))
    successors = np.asarray(jnp.argmax(small_mdp.transition, axis=-1))
    moved = successors[np.asarray(steps.observation), np.asarray(steps.action)]
    np.testing.assert_array_equal(np.asarray(steps.next_observation), moved)


def test_stream_repeats_the_random_numbers_of_gymnax_itself(small_grid):
    """Each stream is what gymnax's own ``step`` with autoreset makes of the same keys."""
    params, key = small_grid.default_params, jax.random.key(11)
    world, step = world_of(small_grid, 8), jax.jit(small_grid.step)
    steps, _ = jax.jit(lambda keys: rollout.stream(keys, lambda *_: UNIFORM, 1, world, 40))(
        key[None]
    )
    key_start, _, key_moves = jax.random.split(key, 3)
    observation, state = small_grid.reset(key_start, params)
    for time, key_move in enumerate(jax.random.split(key_moves, 40)):
        assert int(steps.observation[time, 0]) == int(observation)
        action = steps.action[time, 0]
        observation, state, *_ = step(key_move, state, action, params)


@struct.dataclass
class Counter:
    """Remembers how many steps it saw and what it did last, and acts on both."""

    def initial_carry(self):
        return jnp.int32(0)

    def __call__(self, carry, observation, last_action):
        first = (carry == 0) == (last_action == -1)
        action = jnp.where(first, (carry + last_action + 1) % 5, 4)
        return carry + 1, Categorical(jnp.log(jax.nn.one_hot(action, 5) + 1e-9))


def test_memory_sees_every_action_and_observation_of_its_episode(small_grid):
    keys = jax.random.split(jax.random.key(0), 3)
    steps = EPISODES(keys, Counter(), world_of(small_grid, 8))
    expected = [0]
    for count in range(1, 8):
        expected.append((count + expected[-1] + 1) % 5)
    mask = np.asarray(steps.mask)
    expected = np.tile(np.array(expected)[:, None], (1, 3))
    np.testing.assert_array_equal(np.asarray(steps.action)[mask], expected[mask])


def test_a_policy_is_sampled_alike_with_and_without_a_table(small_grid, random_policies):
    """A policy with memory is never looked up in a table, so one that only claims to have a memory
    is computed at every step."""

    @struct.dataclass
    class Pretender(TablePolicy):
        def initial_carry(self):
            return jnp.int32(0)

    table = Categorical(jnp.log(random_policies[0]))
    keys = jax.random.split(jax.random.key(4), 32)
    world = world_of(small_grid, 8)
    looked_up, computed = (
        EPISODES(keys, policy, world) for policy in (TablePolicy(table), Pretender(table))
    )
    jax.tree.map(np.testing.assert_array_equal, looked_up, computed)
    returns = RETURNS(keys, Pretender(table), world)
    np.testing.assert_array_equal(returns, jnp.sum(computed.reward, axis=0))


def test_continuous_actions_are_clipped_for_the_environment_alone():
    """A rollout keeps the action that was drawn; the environment is given one within its bounds."""
    env = Probe(lambda seen, action: jnp.sum(action), continuous=True)
    world = world_of(env, 5)
    policy = ConstantPolicy(Gaussian(jnp.array([9.0]), jnp.array([-20.0])))
    assert world.num_uniforms == 2
    steps = EPISODES(jax.random.split(jax.random.key(0), 2), policy, world)
    np.testing.assert_allclose(steps.action, 9.0)
    np.testing.assert_allclose(steps.reward, 2.0)
