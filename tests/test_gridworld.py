import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ape_jax.envs import GRIDWORLD, GridWorld, finite_mdp, make
from ape_jax.envs.gridworld import MOVES, EnvState
from ape_jax.types import SettingError


@pytest.mark.parametrize("env", [GridWorld(10), GridWorld(5, (4, 2), 30)])
def test_transitions_equal_the_finite_mdp_in_every_state_and_action(env):
    params = env.default_params
    mdp = env.finite_mdp(params)
    states, actions = (
        x.ravel()
        for x in jnp.meshgrid(
            jnp.arange(env.num_states), jnp.arange(env.num_actions), indexing="ij"
        )
    )

    def step(cell, action):
        state = EnvState(time=jnp.int32(0), row=cell // env.size, column=cell % env.size)
        return env.step_env(jax.random.key(0), state, action, params)

    observation, state, reward, terminated, _ = jax.jit(jax.vmap(step))(states, actions)
    successors = jnp.argmax(mdp.transition, axis=-1).ravel()
    np.testing.assert_array_equal(jnp.sum(mdp.transition, axis=-1), 1.0)
    np.testing.assert_array_equal(observation, successors)
    np.testing.assert_array_equal(state.row * env.size + state.column, successors)
    np.testing.assert_array_equal(reward, mdp.reward.ravel())
    np.testing.assert_array_equal(terminated, mdp.terminal[successors])
    np.testing.assert_array_equal(state.time, 1)


def test_walls_stay_and_moves_move():
    env = GridWorld(3, (0, 0), 8)
    transition = np.asarray(env.finite_mdp().transition)
    up, down, left, right, stay = range(5)
    corner, centre = 8, 4
    assert [transition[corner, a].argmax() for a in (up, down, left, right, stay)] == [
        5,
        8,
        7,
        8,
        8,
    ]
    assert [transition[centre, a].argmax() for a in (up, down, left, right, stay)] == [
        1,
        7,
        3,
        5,
        4,
    ]
    assert MOVES.shape == (5, 2)


def test_starts_are_uniform_off_the_goal():
    env = GridWorld(3, (1, 1), 8)
    keys = jax.random.split(jax.random.key(0), 8_000)
    cells, states = jax.jit(jax.vmap(env.reset, (0, None)))(keys, env.default_params)
    counts = np.bincount(cells, minlength=9)
    assert counts[4] == 0
    # Chi-square with 7 degrees of freedom: 99.9 % lie below 24.3.
    others = np.delete(counts, 4)
    assert np.sum((others - 1000.0) ** 2 / 1000.0) < 24.3
    np.testing.assert_array_equal(states.time, 0)
    np.testing.assert_allclose(env.finite_mdp().start, np.where(np.arange(9) == 4, 0, 1 / 8))


def test_limit_truncates_with_the_true_final_observation_and_autoreset():
    env = GridWorld(3, (0, 0), horizon=3)
    params = env.default_params
    state = EnvState(time=jnp.int32(2), row=jnp.int32(2), column=jnp.int32(2))
    left = 2
    observation, state, reward, terminated, truncated, info = env.step(
        jax.random.key(1), state, left, params
    )
    assert (bool(terminated), bool(truncated), float(reward)) == (False, True, -1.0)
    assert int(info["final_observation"]) == 7
    assert int(state.time) == 0
    assert int(observation) == int(state.row * 3 + state.column) != 0


def test_goal_terminates_without_truncation_and_resets():
    env = GridWorld(3, (0, 0), horizon=9)
    state = EnvState(time=jnp.int32(4), row=jnp.int32(0), column=jnp.int32(1))
    _, state, _, terminated, truncated, info = env.step(
        jax.random.key(1), state, 2, env.default_params
    )
    assert (bool(terminated), bool(truncated)) == (True, False)
    assert int(info["final_observation"]) == 0
    assert int(state.time) == 0


def test_spaces_hold_what_the_environment_gives():
    env = GridWorld(4)
    params = env.default_params
    observation, state = env.reset(jax.random.key(0), params)
    assert env.observation_space(params).n == 16
    assert env.action_space(params).n == env.num_actions == 5
    assert bool(env.observation_space(params).contains(observation))
    spaces = env.state_space(params).spaces
    assert all(bool(space.contains(getattr(state, name))) for name, space in spaces.items())


def test_gridworld_is_registered_with_gymnax_under_its_name():
    env, params = gymnax.make(GRIDWORLD)
    assert isinstance(env, GridWorld)
    assert env.name == GRIDWORLD
    assert params.max_steps_in_episode == 100


def test_make_passes_settings_on():
    env, params = make(GRIDWORLD, size=4, goal=(3, 3), horizon=17)
    assert (env.size, env.goal, params.max_steps_in_episode) == (4, (3, 3), 17)
    assert finite_mdp(env, params).horizon == 17


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 1}, "size must be at least 2; got 1"),
        ({"goal": (0, 10)}, r"goal must be a \(row, column\) on the 10 x 10 grid; got \(0, 10\)"),
        ({"horizon": 0}, "horizon must be at least 1; got 0"),
    ],
)
def test_gridworld_rejects_settings_that_make_no_world(settings, message):
    with pytest.raises(SettingError, match=message):
        GridWorld(**settings)


def test_make_names_the_nearest_environments():
    with pytest.raises(SettingError, match=r"got 'cartpole'\. Nearest: CartPole-v1"):
        make("cartpole")


def test_finite_mdp_is_none_where_the_environment_offers_none():
    assert finite_mdp(*make("CartPole-v1")) is None
