"""Doors to other libraries, tried with the libraries themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from ape_jax import envs
from ape_jax.core import tabular
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.demonstrations.minari import to_minari
from ape_jax.envs import GRIDWORLD, adapters
from ape_jax.envs.adapters import GymnaxEnv
from ape_jax.types import SettingError


@pytest.fixture
def minari(tmp_path, monkeypatch):
    pytest.importorskip("h5py", reason='h5py is not installed: pip install ".[interop]"')
    module = pytest.importorskip(
        "minari", reason='minari is not installed: pip install ".[interop]"'
    )
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return module


@pytest.mark.filterwarnings("ignore:.*:UserWarning:gymnasium")
@pytest.mark.parametrize(
    "env_id", [GRIDWORLD, "CartPole-v1", "Pendulum-v1", "FrozenLake-misc", "FourRooms-misc"]
)
def test_environment_passes_the_checker_of_gymnasium(env_id):
    check_env(adapters.to_gymnasium(env_id), skip_render_check=True)


def test_episodes_end_where_the_environment_ends_them(small_grid):
    """Up from anywhere: terminated on the goal, truncated at the limit, never both."""
    world = GymnaxEnv(small_grid)
    ends = set()
    for seed in range(12):
        observation, _ = world.reset(seed=seed)
        for count in range(1, 9):
            cell = observation
            observation, reward, terminated, truncated, _ = world.step(0)
            assert reward == -1.0
            assert observation == (cell - 3 if cell >= 3 else cell)  # No new episode within.
            assert terminated == (observation == 1)
            assert truncated == (count == 8 and not terminated)
            if terminated or truncated:
                ends.add("terminated" if terminated else "truncated")
                break
    assert ends == {"terminated", "truncated"}


def test_seed_decides_all_episodes_that_follow():
    def starts(seed):
        world = adapters.to_gymnasium(GRIDWORLD)
        first = world.reset(seed=seed)[0]
        return [first, *(world.reset()[0] for _ in range(9))]

    assert starts(3) == starts(3)
    assert starts(3) != starts(4)
    assert len(set(starts(3))) > 5


def test_score_agrees_with_the_exact_return(small_grid, small_mdp, random_policies):
    """Mean of 300 episodes against the finite MDP, at four standard errors."""
    table = np.asarray(random_policies[0], np.float64)
    table /= table.sum(axis=-1, keepdims=True)
    draws = np.random.default_rng(0)
    returns = adapters.score(
        lambda cell: draws.choice(5, p=table[cell]), GymnaxEnv(small_grid), 300, seed=5
    )
    assert returns.shape == (300,)
    error = returns.std(ddof=1) / np.sqrt(300)
    assert abs(returns.mean() - tabular.policy_return(small_mdp, random_policies[0])) < 4 * error


def test_score_with_continuous_actions_is_the_same_for_the_same_seed():
    one, again = (
        adapters.score(lambda _: np.zeros(1, np.float32), "Pendulum-v1", 2, seed=1) for _ in "ab"
    )
    np.testing.assert_array_equal(one, again)
    assert (one < 0).all()


def test_score_rejects_no_episodes():
    with pytest.raises(SettingError, match="episodes must be at least 1; got 0"):
        adapters.score(lambda _: 0, GRIDWORLD, 0, seed=0)


def check_episodes(dataset, shown):
    """Every step of a dataset against the demonstrations that it came from."""
    shown = jax.tree.map(np.asarray, shown)
    assert dataset.total_steps == len(shown.action)
    assert dataset.total_episodes == shown.episode[-1] + 1
    for number, episode in enumerate(dataset.iterate_episodes()):
        rows = np.flatnonzero(shown.episode == number)
        np.testing.assert_array_equal(episode.observations[:-1], shown.observation[rows])
        np.testing.assert_array_equal(episode.observations[-1], shown.observation[rows[-1]])
        np.testing.assert_array_equal(episode.actions, shown.action[rows])
        np.testing.assert_array_equal(episode.rewards, shown.reward[rows])
        np.testing.assert_array_equal(episode.terminations, shown.terminated[rows])
        cut = ~(shown.terminated[rows[-1]] | shown.truncated[rows[-1]])
        np.testing.assert_array_equal(episode.truncations[:-1], shown.truncated[rows[:-1]])
        assert episode.truncations[-1] == (shown.truncated[rows[-1]] | cut)
        assert episode.terminations[-1] != episode.truncations[-1]


def test_minari_gives_back_every_step(minari, collected):
    shown, _ = collected
    to_minari("grid/ape-v0", GRIDWORLD, shown)
    dataset = minari.load_dataset("grid/ape-v0")
    check_episodes(dataset, shown)
    ends = np.asarray(shown.terminated | shown.truncated)
    cut_short = np.append(np.diff(shown.episode) == 1, True) & ~ends
    assert cut_short.any()  # The case that the export has to mark is there.
    world = dataset.recover_environment()
    assert isinstance(world.unwrapped, GymnaxEnv)
    assert world.observation_space == dataset.observation_space


def test_minari_gives_back_continuous_actions(minari):
    draws = np.random.default_rng(0)
    shown = Demonstrations(
        observation=draws.uniform(-1, 1, (10, 3)).astype(np.float32),
        action=draws.uniform(-2, 2, (10, 1)).astype(np.float32),
        reward=draws.normal(size=10).astype(np.float32),
        terminated=np.arange(10) == 3,
        truncated=np.arange(10) == 9,
        episode=(np.arange(10) > 3).astype(np.int32),
    )
    check_episodes(to_minari("pendulum-v3", "Pendulum-v1", shown), shown)


def test_hidden_expert_is_exported_only_if_asked_for(minari, collected):
    shown, expert = collected
    hidden = to_minari("hidden-v0", GRIDWORLD, shown)
    assert all(not episode.infos for episode in hidden.iterate_episodes())
    exported = to_minari("exported-v0", GRIDWORLD, shown, expert)
    infos = [episode.infos["hidden_expert"] for episode in exported.iterate_episodes()]
    starts = np.flatnonzero(np.diff(np.asarray(shown.episode), prepend=-1))
    np.testing.assert_array_equal(
        np.concatenate([np.unique(each) for each in infos]), expert[starts]
    )


@pytest.mark.parametrize("name", ["no-version", "../up-v0", "a b-v0", ""])
def test_malformed_dataset_name_gets_one_message(name, minari, collected):
    with pytest.raises(SettingError, match="such as gridworld/ape-v0; got"):
        to_minari(name, GRIDWORLD, collected[0])


def test_dataset_that_exists_is_not_replaced(minari, collected):
    to_minari("once-v0", GRIDWORLD, collected[0])
    with pytest.raises(SettingError, match="must name a dataset that does not exist yet"):
        to_minari("once-v0", GRIDWORLD, collected[0])


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_export_that_fails_leaves_no_dataset(error, minari, collected, monkeypatch):
    from minari.dataset._storages.hdf5_storage import HDF5Storage

    def fail(self, episodes):
        raise error

    monkeypatch.setattr(HDF5Storage, "update_episodes", fail)
    expected = SettingError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        to_minari("half-v0", GRIDWORLD, collected[0])
    monkeypatch.undo()
    assert "half-v0" not in minari.list_local_datasets()


def test_missing_extra_gets_one_message(collected, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "minari", None)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(SettingError, match=r"Run: pip install 'ape-jax\[interop\]'"):
        to_minari("any-v0", GRIDWORLD, collected[0])


def test_observation_after_the_end_is_its_own_and_not_the_next_start():
    """The wrapper of gymnax itself is still wrong; if this fails, ours can be dropped."""
    from gymnax.wrappers import GymnaxToGymWrapper

    grid, params = envs.make(GRIDWORLD)
    ended = []
    for world in (GymnaxToGymWrapper(grid, params), GymnaxEnv(grid, params)):
        first = int(np.asarray(world.reset(seed=0)[0]))
        for _ in range(100):  # Stay: truncated in the cell of the start.
            observation, _, terminated, truncated, _ = world.step(jnp.int32(4))
        assert (bool(terminated), bool(truncated)) == (False, True)
        ended.append((first, int(np.asarray(observation))))
    (theirs_first, theirs_last), (ours_first, ours_last) = ended
    assert ours_last == ours_first
    assert theirs_last != theirs_first
