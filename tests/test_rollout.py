import dataclasses

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ape_jax import envs
from ape_jax.core import categorical, tabular
from ape_jax.envs import GridWorld, rollout

UNIFORM = jnp.cumsum(jnp.full(5, 0.2))


def random_walk(env, num_steps, num_episodes=64):
    """Transitions [N, T]."""

    def walk(keys):
        def policy(observations):
            return jnp.tile(UNIFORM, (len(observations), 1))

        return rollout.episodes(keys, policy, env, env.default_params, num_steps)

    steps = jax.jit(walk)(jax.random.split(jax.random.key(0), num_episodes))
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), steps)


@pytest.fixture(scope="module")
def walks(small_grid):
    return random_walk(small_grid, small_grid.horizon, 4096)


def test_episode_follows_the_transitions_of_the_world(walks, small_mdp):
    successors = np.asarray(jnp.argmax(small_mdp.transition, axis=-1))
    observation, action, live = (
        np.asarray(x) for x in (walks.observation, walks.action, walks.mask)
    )
    moved = successors[observation[:, :-1], action[:, :-1]]
    both_live = live[:, :-1] & live[:, 1:]
    np.testing.assert_array_equal(observation[:, 1:][both_live], moved[both_live])


def test_episode_marks_what_ends_it_and_holds_still_after(walks, small_mdp):
    live, terminated, truncated = (
        np.asarray(x) for x in (walks.mask, walks.terminated, walks.truncated)
    )
    ends = terminated | truncated
    last = live.sum(axis=1) - 1
    assert np.all(ends.sum(axis=1) == 1)
    assert np.all(ends[np.arange(len(last)), last])
    assert not np.any(terminated & truncated)
    assert np.all(last[truncated.any(axis=1)] == small_mdp.horizon - 1)
    np.testing.assert_array_equal(np.asarray(walks.reward), np.where(live, -1.0, 0.0))
    assert 0 < truncated.any(axis=1).mean() < 1


def test_episode_returns_and_visits_match_the_exact_ones(walks, small_mdp):
    """No step of a next episode leaks into a return: the mean lies within four standard errors."""
    policy = jnp.full((9, 5), 0.2)
    returns = np.asarray(walks.reward).sum(axis=1)
    error = returns.std(ddof=1) / np.sqrt(len(returns))
    assert abs(returns.mean() - float(tabular.policy_return(small_mdp, policy))) < 4 * error
    visits = np.bincount(np.asarray(walks.observation)[np.asarray(walks.mask)], minlength=9) / len(
        returns
    )
    np.testing.assert_allclose(visits, tabular.state_occupancy(small_mdp, policy), atol=0.06)


def test_episode_cut_before_the_limit_is_not_marked_truncated(small_grid):
    walks = random_walk(small_grid, 2)
    assert not np.any(walks.truncated)


@pytest.mark.parametrize("finite", [True, False])
def test_each_head_acts_in_its_block_and_the_observer_in_its_own(finite, small_task):
    """Head c always takes action c, the observer a third, and nobody else does; with and without
    tables of what each does in every state."""
    networks = small_task.networks
    heads = networks.init(jax.random.key(0)).heads
    always = jnp.stack([jnp.zeros((9, 5)).at[:, action].set(50.0) for action in (1, 3)])
    heads = jax.tree.map(lambda _: always, heads)
    if not finite:
        networks = dataclasses.replace(networks, num_states=None)
    keys = jax.random.split(jax.random.key(1), (2, 6))
    world = (small_task.world.env, small_task.world.params, small_task.world.horizon)
    experts, observer = rollout.ensemble_episodes(
        *(keys, keys.reshape(-1), networks, heads),
        lambda _: jnp.log(jax.nn.one_hot(4, 5) + 1e-9),
        *world,
    )
    assert experts.action.shape == (8, 2, 6)
    np.testing.assert_array_equal(experts.action[:, 0], 1)
    np.testing.assert_array_equal(experts.action[:, 1], 3)
    assert observer.action.shape == (8, 12)
    np.testing.assert_array_equal(observer.action, 4)


def test_stream_draws_an_expert_for_each_episode_and_keeps_it(small_grid):
    """Expert 0 stays put for ever and expert 1 walks, so a switch inside an episode would show."""
    stay_or_walk = jnp.stack([jnp.cumsum(jax.nn.one_hot(4, 5)), UNIFORM])
    steps, expert = jax.jit(
        lambda key: rollout.stream(
            *(
                key,
                lambda _, expert, uniforms: categorical.sample(stay_or_walk[expert], uniforms[0]),
            ),
            *(2, small_grid, small_grid.default_params, 20_000),
        )
    )(jax.random.key(3))
    expert, action = np.asarray(expert), np.asarray(steps.action)
    ends = np.asarray(steps.terminated | steps.truncated)
    assert np.all((expert[1:] == expert[:-1]) | ends[:-1])
    assert np.all(action[expert == 0] == 4)
    starts = np.concatenate([[True], ends[:-1]])
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
    cumulative = jnp.ones(env.action_space(params).n)
    shapes = jax.eval_shape(
        lambda keys: rollout.episodes(keys, lambda _: cumulative[None], env, params, 5),
        jax.random.split(jax.random.key(0), 1),
    )
    assert shapes.reward.shape == shapes.mask.shape == (5, 1)
    assert shapes.observation.shape == (5, 1, *env.observation_space(params).shape)
    streamed, expert = jax.eval_shape(
        lambda key: rollout.stream(key, lambda *_: jnp.int32(0), 1, env, params, 5),
        jax.random.key(0),
    )
    one = jax.tree.map(lambda x: (x.shape[0], *x.shape[2:]), shapes)
    assert jax.tree.map(jnp.shape, streamed) == one
    assert expert.shape == (5,)


def test_gridworld_of_any_size_runs_to_its_own_limit():
    walks = random_walk(GridWorld(12, (11, 11), horizon=5), 5)
    assert np.asarray(walks.mask).sum(axis=1).max() == 5


def test_next_observation_is_the_true_successor_also_at_an_end(walks, small_mdp):
    successors = np.asarray(jnp.argmax(small_mdp.transition, axis=-1))
    live = np.asarray(walks.mask)
    moved = successors[np.asarray(walks.observation), np.asarray(walks.action)]
    np.testing.assert_array_equal(np.asarray(walks.next_observation)[live], moved[live])


def test_stream_has_next_observations_from_before_the_reset(small_grid, small_mdp):
    stream = jax.jit(rollout.stream, static_argnums=(1, 2, 3, 5))
    steps, _ = stream(
        *(jax.random.key(3), lambda _, __, uniforms: categorical.sample(UNIFORM, uniforms[0])),
        *(1, small_grid, small_grid.default_params, 500),
    )
    successors = np.asarray(jnp.argmax(small_mdp.transition, axis=-1))
    moved = successors[np.asarray(steps.observation), np.asarray(steps.action)]
    np.testing.assert_array_equal(np.asarray(steps.next_observation), moved)


def test_memory_sees_every_action_and_observation_of_its_episode(small_grid):
    class Counter:
        """Remembers how many steps it saw and what it did last, and acts on both."""

        def start(self):
            return jnp.int32(0)

        def __call__(self, memory, observation, last_action):
            first = (memory == 0) == (last_action == -1)
            action = jnp.where(first, (memory + last_action + 1) % 5, 4)
            return memory + 1, jnp.log(jax.nn.one_hot(action, 5) + 1e-9)

    episodes = jax.jit(rollout.episodes_with_memory, static_argnums=(1, 2, 4))
    keys = jax.random.split(jax.random.key(0), 3)
    steps = episodes(keys, Counter(), small_grid, small_grid.default_params, 8)
    expected = [0]
    for count in range(1, 8):
        expected.append((count + expected[-1] + 1) % 5)
    live = np.asarray(steps.mask)
    expected = np.tile(np.array(expected)[:, None], (1, 3))
    np.testing.assert_array_equal(np.asarray(steps.action)[live], expected[live])
