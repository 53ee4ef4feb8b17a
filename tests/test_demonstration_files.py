"""Files of demonstrations: what is written reads back, and everything else gets one message."""

import pickle
import zipfile

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ape_jax.demonstrations import files
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.envs import GRIDWORLD
from ape_jax.types import SettingError


def grid_steps(num_steps=6, ends=(2,)):
    """Steps on the gridworld whose episodes end at the given steps, terminated."""
    terminated = np.isin(np.arange(num_steps), ends)
    return {
        "observation": np.arange(num_steps, dtype=np.int32),
        "action": np.arange(num_steps, dtype=np.int32) % 5,
        "reward": np.full(num_steps, -1.0, np.float32),
        "terminated": terminated,
        "truncated": np.zeros(num_steps, bool),
        "episode": (np.cumsum(terminated) - terminated).astype(np.int32),
    }


def pendulum_steps():
    return {
        **grid_steps(),
        "observation": np.linspace(-1, 1, 18, dtype=np.float32).reshape(6, 3),
        "action": np.linspace(-2, 2, 6, dtype=np.float32).reshape(6, 1),
    }


def write(path, env_id=GRIDWORLD, **arrays):
    """A file as a user would write it, with NumPy alone; None leaves an array out."""
    arrays = {"format_version": 1, "env_id": env_id, **arrays}
    np.savez(path, **{name: x for name, x in arrays.items() if x is not None})
    return path


def assert_equal(one: Demonstrations, other: Demonstrations):
    for name, x, y in zip(Demonstrations._fields, one, other, strict=True):
        assert x.dtype == y.dtype, name
        np.testing.assert_array_equal(x, y)


def test_collected_demonstrations_read_back(collected, tmp_path):
    shown, expert = collected
    path = tmp_path / "shown.data"
    files.save(path, GRIDWORLD, shown, expert)
    assert [each.name for each in tmp_path.iterdir()] == ["shown.data"]
    env_id, loaded, loaded_expert, _ = files.load(path)
    assert env_id == GRIDWORLD
    assert_equal(loaded, shown)
    assert isinstance(loaded.action, jax.Array)
    np.testing.assert_array_equal(loaded_expert, expert)
    assert path.stat().st_size < sum(x.nbytes for x in (*shown, expert))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_valid_demonstrations_read_back(data, tmp_path_factory):
    """Episodes of any length and end, all but one of them perhaps cut short, with or without
    the expert."""
    lengths = data.draw(st.lists(st.integers(1, 5), min_size=2, max_size=8))
    marks = data.draw(
        st.lists(st.sampled_from("tuc"), min_size=len(lengths), max_size=len(lengths)).filter(
            lambda marks: set(marks) != {"c"}
        )
    )
    last = np.cumsum(lengths) - 1
    num_steps = sum(lengths)
    draws = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    shown = Demonstrations(
        observation=draws.integers(0, 100, num_steps).astype(np.int32),
        action=draws.integers(0, 5, num_steps).astype(np.int32),
        reward=draws.normal(size=num_steps).astype(np.float32),
        terminated=np.isin(np.arange(num_steps), last[[mark == "t" for mark in marks]]),
        truncated=np.isin(np.arange(num_steps), last[[mark == "u" for mark in marks]]),
        episode=np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
    )
    expert = np.repeat(draws.integers(0, 3, len(lengths)).astype(np.int32), lengths)
    expert = expert if data.draw(st.booleans()) else None
    path = tmp_path_factory.mktemp("any") / "shown.npz"
    files.save(path, GRIDWORLD, shown, expert)
    loaded = files.load(path)
    assert_equal(loaded.demonstrations, shown)
    if expert is None:
        assert loaded.hidden_expert is None
    else:
        np.testing.assert_array_equal(loaded.hidden_expert, expert)


def test_file_with_continuous_actions_reads_back(tmp_path):
    steps = pendulum_steps()
    loaded = files.load(write(tmp_path / "own.npz", "Pendulum-v1", **steps))
    assert_equal(loaded.demonstrations, Demonstrations(**steps))
    assert loaded.hidden_expert is None


def test_wider_types_that_lose_nothing_are_taken(tmp_path):
    steps = grid_steps()
    wider = {
        **steps,
        "observation": steps["observation"].astype(np.int64),
        "action": steps["action"].astype(np.int64),
        "reward": steps["reward"].astype(np.float64),
        "episode": steps["episode"].astype(np.int64),
    }
    loaded = files.load(write(tmp_path / "own.npz", **wider))
    assert_equal(loaded.demonstrations, Demonstrations(**steps))


@pytest.mark.parametrize("env_id", sorted(gymnax.registered_envs))
def test_every_environment_of_gymnax_gives_a_file_that_loads(env_id, tmp_path):
    """Kinds and shapes as the environments truly have them, under a policy drawn at random."""
    from ape_jax import envs

    try:
        env, params = envs.make(env_id)
    except SettingError as error:
        pytest.skip(str(error))  # Needs data that is not here.
    action_space = env.action_space(params)
    starts = [env.reset_env(jax.random.key(0), params)[0]] * 4
    keys = jax.random.split(jax.random.key(9), 4)
    files.save(
        tmp_path / "shown.npz",
        env_id,
        Demonstrations(
            observation=jnp.stack(starts),
            action=jnp.stack([action_space.sample(key) for key in keys]),
            reward=jnp.zeros(4),
            terminated=jnp.arange(4) == 3,
            truncated=jnp.zeros(4, bool),
            episode=jnp.zeros(4, jnp.int32),
        ),
    )
    loaded = files.load(tmp_path / "shown.npz").demonstrations
    np.testing.assert_array_equal(loaded.observation, jnp.stack(starts))


def changed(name, step, value, dtype=None):
    array = grid_steps()[name].astype(dtype or grid_steps()[name].dtype)
    array[step] = value
    return {name: array}


BAD = {
    "missing": ({"reward": None}, "missing 'reward'"),
    "unknown": ({"rewards": np.zeros(6)}, "unknown 'rewards'"),
    "version": ({"format_version": 2}, "must be the whole number 1; got 2. A higher one is from"),
    "version is text": ({"format_version": "1"}, "must be the whole number 1; got '1'"),
    "env is a number": ({"env_id": 3}, "env_id must be one text"),
    "env is a list": ({"env_id": ["a", "b"]}, "env_id must be one text"),
    "env unknown": ({"env_id": "GridWorld"}, "Nearest: GridWorld-ape"),
    "lengths": ({"reward": np.zeros(5, np.float32)}, "the same length; got observation 6"),
    "empty": (grid_steps(0, ()), "at least 2 steps; got 0. Record more"),
    "one step": (grid_steps(1, (0,)), "at least 2 steps; got 1. Record more"),
    "no complete episode": (grid_steps(6, ()), "at least one complete episode"),
    "int8 actions": (
        {"action": np.zeros(6, np.int8)},
        "action must be int32, or int64 within its range; got int8. Convert it",
    ),
    "float actions": ({"action": np.zeros(6, np.float32)}, "got float32. Convert it"),
    "boolean actions": ({"action": np.zeros(6, bool)}, "got bool. Convert it"),
    "complex rewards": ({"reward": np.zeros(6, complex)}, "got complex128. Convert it"),
    "text rewards": ({"reward": np.array(["x"] * 6)}, "reward must be float32"),
    "float64 too large": (changed("reward", 1, 1e300, np.float64), "got 1e+300 at step 1"),
    "int64 that loses": (changed("action", 3, 2**40, np.int64), "got 1099511627776 at step 3"),
    "flags as numbers": ({"terminated": np.zeros(6, np.int32)}, "terminated must be bool; got int"),
    "nan reward": (changed("reward", 4, np.nan), "reward must be finite; got nan at step 4"),
    "nan in float64": (changed("reward", 4, np.nan, np.float64), "finite; got nan at step 4"),
    "infinite reward": (changed("reward", 0, np.inf), "reward must be finite; got inf at step 0"),
    "action too high": (changed("action", 5, 5), "must be between 0 and 4; got 5 at step 5"),
    "negative action": (changed("action", 5, -1), "must be between 0 and 4; got -1 at step 5"),
    "state too high": (changed("observation", 1, 100), "between 0 and 99; got 100 at step 1"),
    "negative state": (changed("observation", 1, -3), "between 0 and 99; got -3 at step 1"),
    "observation too wide": (
        {"observation": np.zeros((6, 2), np.int32)},
        "observation must have shape [N]; got [6, 2]",
    ),
    "observation of a continuous world": (
        {"observation": np.zeros(6, np.float32)},
        "observation must be int32",
    ),
    "scalar": ({"action": np.int32(1)}, "action must have shape [N]; got []"),
    "episodes from 1": ({"episode": grid_steps()["episode"] + 1}, "steps; got 1 at step 0"),
    "episode skipped": ({"episode": grid_steps()["episode"] * 2}, "got 2 at step 3"),
    "episode falls": (changed("episode", 5, 0), "got 0 at step 5. Sort"),
    "end inside": (changed("terminated", 1, True), "or truncated; got 0 at step 2"),
    "truncated inside": (changed("truncated", 3, True), "or truncated; got 1 at step 4"),
    "both ends": (changed("truncated", 2, True), "not both; got True at step 2"),
    "expert of two": (
        {"hidden_expert": np.array([0, 0, 1, 1, 1, 1], np.int32)},
        "the same throughout an episode; got 1 at step 2",
    ),
    "expert too short": ({"hidden_expert": np.zeros(2, np.int32)}, "hidden_expert 2"),
    "one text of parameters": ({"env_param": np.str_("x=1")}, "list of name=value texts"),
    "parameter unknown": ({"env_param": np.array(["gravity=1"])}, "got 'gravity'"),
    "negative expert": ({"hidden_expert": np.full(6, -1, np.int32)}, "at least 0"),
    "text of objects": ({"reward": np.array([1, "x", None] * 2, object)}, "holds Python objects"),
}


def message_of(path) -> str:
    """The one message that a file gets; it names the file and says what to do."""
    with pytest.raises(SettingError) as error:
        files.load(path)
    text = str(error.value)
    assert str(path) in text
    assert "\n" not in text
    assert ". " in text
    return text


@pytest.mark.parametrize("case", BAD)
def test_bad_file_gets_one_message(case, tmp_path):
    change, expected = BAD[case]
    path = write(tmp_path / "own.npz", **{**grid_steps(), **change})
    assert expected in message_of(path)


BAD_CONTINUOUS = {
    "nan": ("observation", np.nan, "observation must be finite; got nan at step 2"),
    "infinity": ("action", -np.inf, "action must be finite; got -inf at step 2"),
    "bound": ("action", 2.5, "got 2.5 at step 2"),
}


@pytest.mark.parametrize("case", BAD_CONTINUOUS)
def test_bad_continuous_value_gets_one_message(case, tmp_path):
    name, value, expected = BAD_CONTINUOUS[case]
    steps = pendulum_steps()
    steps[name][2, 0] = value
    assert expected in message_of(write(tmp_path / "own.npz", "Pendulum-v1", **steps))


def test_observations_of_another_shape_get_one_message(tmp_path):
    steps = {**pendulum_steps(), "observation": np.zeros((6, 4), np.float32)}
    text = message_of(write(tmp_path / "own.npz", "Pendulum-v1", **steps))
    assert "observation must have shape [N, 3]; got [6, 4]" in text


def test_same_rules_hold_for_what_is_saved(tmp_path):
    shown = Demonstrations(**{**grid_steps(), **changed("reward", 1, np.nan)})
    with pytest.raises(SettingError, match="reward must be finite; got nan at step 1"):
        files.save(tmp_path / "shown.npz", GRIDWORLD, shown)
    assert list(tmp_path.iterdir()) == []


def test_path_that_is_no_file_gets_one_message(tmp_path):
    for path in (tmp_path, tmp_path / "absent.npz"):
        assert "is no file" in message_of(path)


@pytest.mark.parametrize("content", [b"", b"state,action\n1,2\n", pickle.dumps([1, 2])])
def test_file_of_another_kind_gets_one_message(content, tmp_path):
    path = tmp_path / "own.npz"
    path.write_bytes(content)
    assert "must be a .npz file" in message_of(path)


def test_npy_file_gets_one_message(tmp_path):
    np.save(tmp_path / "own.npy", np.zeros(3))
    assert "must be a .npz file" in message_of(tmp_path / "own.npy")


def test_zip_of_other_things_gets_one_message(tmp_path):
    path = write(tmp_path / "own.npz", **{**grid_steps(), "reward": None})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("reward", "not an array")
    assert "reward must be a plain array" in message_of(path)


def test_array_that_is_there_twice_gets_one_message(tmp_path):
    path = write(tmp_path / "own.npz", **grid_steps())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("reward", "again")
    assert "twice 'reward'" in message_of(path)


def test_file_cut_short_anywhere_gets_one_message(tmp_path):
    whole = write(tmp_path / "whole.npz", **grid_steps()).read_bytes()
    path = tmp_path / "own.npz"
    for size in range(0, len(whole) - 1, 97):
        path.write_bytes(whole[:size])
        assert "must be a" in message_of(path)


def test_file_with_flipped_bytes_loads_or_gets_one_message(tmp_path):
    """Damage never ends in any other error, wherever it is."""
    whole = write(tmp_path / "whole.npz", **grid_steps()).read_bytes()
    path = tmp_path / "own.npz"
    refused = 0
    for position in range(0, len(whole), 13):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            files.load(path)
        except SettingError:
            refused += 1
    assert refused > 50


class Malicious:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_pickled_content_is_refused_and_never_executed(tmp_path):
    made = tmp_path / "made"
    pickle.loads(pickle.dumps(Malicious(made))).close()
    assert made.exists()  # Were it unpickled, it would show.
    made.unlink()
    for name in ("reward", "env_id", "format_version", "hidden_expert", "episode"):
        objects = np.array([Malicious(made)] * 6, object)
        path = write(tmp_path / "own.npz", **{**grid_steps(), name: objects})
        assert f"{name} must be a plain array; it holds Python objects" in message_of(path)
    (tmp_path / "own.npz").write_bytes(pickle.dumps(Malicious(made)))
    message_of(tmp_path / "own.npz")
    assert not made.exists()


class Full:
    """``numpy.savez_compressed`` on a disk that fills up, or under Ctrl-C, half way."""

    def __init__(self, error):
        self.error = error

    def __call__(self, file, **arrays):
        file.write(b"half")
        raise self.error


@pytest.mark.parametrize(
    ("error", "raised"),
    [(OSError(28, "No space left on device"), SettingError), (KeyboardInterrupt(), None)],
)
def test_write_that_fails_leaves_the_old_file_whole(error, raised, tmp_path, monkeypatch):
    path = tmp_path / "shown.npz"
    shown = Demonstrations(**grid_steps())
    files.save(path, GRIDWORLD, shown)
    before = path.read_bytes()
    monkeypatch.setattr(np, "savez_compressed", Full(error))
    with pytest.raises(raised or KeyboardInterrupt):
        files.save(path, GRIDWORLD, shown)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_directory_that_is_not_there_gets_one_message(tmp_path):
    shown = Demonstrations(**grid_steps())
    with pytest.raises(SettingError, match="No such file or directory"):
        files.save(tmp_path / "absent" / "shown.npz", GRIDWORLD, shown)


def test_float64_is_rounded(tmp_path):
    steps = {**grid_steps(), "reward": np.full(6, 0.1)}
    reward = files.load(write(tmp_path / "own.npz", **steps)).demonstrations.reward
    assert reward.dtype == np.float32
    np.testing.assert_array_equal(reward, np.full(6, 0.1, np.float32))
