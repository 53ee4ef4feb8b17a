import dataclasses
import json
from pathlib import Path

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from gymnax import registration
from gymnax.environments import environment
from gymnax.environments.classic_control.cartpole import CartPole

from ape_jax import presets
from ape_jax.envs import GRIDWORLD, GridWorld, finite_mdp, highest_return, make, parse_overrides
from ape_jax.types import SettingError


@struct.dataclass
class OwnParams(environment.EnvParams):
    """A float with a whole default, an array, and a flag."""

    max_steps_in_episode: int = 30
    wind: float = 1
    drift: jax.Array = dataclasses.field(default_factory=lambda: jnp.zeros(2))
    icy: bool = False


class OwnGrid(GridWorld):
    @property
    def default_params(self):
        return OwnParams()


@pytest.fixture
def own_id():
    """An environment registered as its user would, for one test."""
    name = "Own-Grid-v3"
    gymnax.register(name, OwnGrid)
    yield name
    gymnax.registered_envs.remove(name)
    del registration._registry[name]


@pytest.mark.parametrize(
    ("env_id", "name", "value", "expected"),
    [
        ("FourRooms-misc", "max_steps_in_episode", 200, 200),
        ("FourRooms-misc", "fail_prob", 0.0, 0.0),
        ("FourRooms-misc", "fail_prob", 1, 1.0),
        ("FourRooms-misc", "resample_goal_pos", True, True),
        ("FourRooms-misc", "resample_goal_pos", "true", True),
        ("Asterix-MinAtar", "ramping", "False", False),
        ("CartPole-v1", "x_threshold", float("inf"), float("inf")),
        ("BernoulliBandit-misc", "max_steps_in_episode", 20, 20.0),
        ("BernoulliBandit-misc", "max_steps_in_episode", 20.0, 20.0),
        (GRIDWORLD, "max_steps_in_episode", 7, 7),
    ],
)
def test_make_replaces_a_parameter_in_its_own_type(env_id, name, value, expected):
    env, params = make(env_id, ((name, value),))
    received = getattr(params, name)
    assert (received, type(received)) == (expected, type(expected))
    assert type(received) is type(getattr(env.default_params, name))


def test_make_leaves_other_parameters_and_takes_the_last_of_one_named_twice():
    overrides = (("fail_prob", 0.5), ("max_steps_in_episode", 9), ("fail_prob", 0.25))
    env, params = make("FourRooms-misc", overrides)
    assert params == env.default_params.replace(fail_prob=0.25, max_steps_in_episode=9)
    assert make("FourRooms-misc")[1] == env.default_params


def test_overridden_limit_cuts_episodes():
    env, params = make(GRIDWORLD, (("max_steps_in_episode", 1),), size=3, goal=(0, 0))
    key = jax.random.key(0)
    _, state = env.reset(key, params)
    *_, truncated, _ = env.step(key, state, 4, params)
    assert bool(truncated)
    assert finite_mdp(env, params).horizon == 1


@pytest.mark.parametrize(
    ("env_id", "name", "value", "message"),
    [
        (
            "CartPole-v1",
            "max_steps",
            3,
            "env-param must be a parameter of CartPole-v1; got 'max_steps'. "
            "Nearest: max_steps_in_episode",
        ),
        (
            "FourRooms-misc",
            "zzz",
            1,
            "env-param must be a parameter of FourRooms-misc; got 'zzz'. "
            "Known: max_steps_in_episode, fail_prob, resample_init_pos, resample_goal_pos",
        ),
        (
            "Acrobot-v1",
            "available_torque",
            1.0,
            "env-param must be a flag or a number; got 'available_torque', which holds ArrayImpl. "
            "Replace it in the parameters that make returns",
        ),
        *(
            (
                "CartPole-v1",
                "max_steps_in_episode",
                value,
                "env-param max_steps_in_episode must be a whole number from 1 to 100000; "
                f"got {value!r}",
            )
            for value in (0.5, 200.0, 0, -3, True, "200", 100_001, 10**400)
        ),
        *(
            (
                "BernoulliBandit-misc",
                "max_steps_in_episode",
                value,
                "env-param max_steps_in_episode must be a whole number from 1 to 100000; "
                f"got {value!r}",
            )
            for value in (20.5, float("inf"), 0.0)
        ),
        *(
            (
                "Asterix-MinAtar",
                "ramp_interval",
                value,
                f"env-param ramp_interval must be a whole number below 2^31; got {value!r}",
            )
            for value in (0.5, False, "few", 2**31, None)
        ),
        *(
            (
                "CartPole-v1",
                "gravity",
                value,
                f"env-param gravity must be a number; got {value!r}",
            )
            for value in ("strong", "9.8", True, float("nan"), 10**400)
        ),
        *(
            (
                "Asterix-MinAtar",
                "ramping",
                value,
                f"env-param ramping must be true or false; got {value!r}",
            )
            for value in (1, 0.0, "yes")
        ),
    ],
)
def test_make_refuses_what_is_no_parameter_or_no_value_of_it(env_id, name, value, message):
    with pytest.raises(SettingError) as refusal:
        make(env_id, ((name, value),))
    assert str(refusal.value) == message


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], ()),
        (
            ["max_steps_in_episode=200", "fail_prob=0.0"],
            (("max_steps_in_episode", 200), ("fail_prob", 0.0)),
        ),
        ((" a = -3 ", "b=1e-3"), (("a", -3), ("b", 1e-3))),
        (["a=true", "b=False"], (("a", True), ("b", False))),
        (["a=inf"], (("a", float("inf")),)),
    ],
)
def test_parse_overrides_reads_flags_and_numbers(texts, expected):
    overrides = parse_overrides(texts)
    assert overrides == expected
    assert [type(value) for _, value in overrides] == [type(value) for _, value in expected]
    assert hash(overrides) == hash(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "fail_prob",
            "env-param must be name=value, such as max_steps_in_episode=200; got 'fail_prob'",
        ),
        ("=5", "env-param must be name=value, such as max_steps_in_episode=200; got '=5'"),
        ("", "env-param must be name=value, such as max_steps_in_episode=200; got ''"),
        ("a=", "env-param a must be a number, true or false; got ''"),
        ("a=few", "env-param a must be a number, true or false; got 'few'"),
        ("a=b=1", "env-param a must be a number, true or false; got 'b=1'"),
    ],
)
def test_parse_overrides_refuses_what_is_no_pair(text, message):
    with pytest.raises(SettingError) as refusal:
        parse_overrides(["a=1", text])
    assert str(refusal.value) == message


def test_make_takes_what_its_user_registered(own_id):
    env, params = make(own_id, parse_overrides(["wind=2.5", "icy=true"]), size=4)
    assert isinstance(env, OwnGrid)
    assert (env.size, params.max_steps_in_episode, params.wind, params.icy) == (4, 30, 2.5, True)
    np.testing.assert_array_equal(params.drift, np.zeros(2))
    with pytest.raises(SettingError, match=r"got 'drift', which holds ArrayImpl"):
        make(own_id, (("drift", 1.0),))
    with pytest.raises(SettingError, match=r"got 'own-grid'\. Nearest: Own-Grid-v3"):
        make("own-grid")


def test_make_lists_all_environments_where_none_is_near():
    with pytest.raises(SettingError) as refusal:
        make("0000")
    assert str(refusal.value) == (
        "env must be a registered gymnax environment; got '0000'. "
        f"Known: {', '.join(gymnax.registered_envs)}"
    )


BEST = {
    "GridWorld-ape": -900 / 99,  # 99 starts; distances to the goal, in a corner, sum to 900.
    "CartPole-v1": 500.0,
    "Catch-bsuite": 1.0,
    "MountainCarContinuous-v0": 100.0,
    "Breakout-MinAtar": None,
}


@pytest.mark.parametrize(("env_id", "best"), BEST.items())
def test_highest_return_is_what_an_episode_can_pay(env_id, best):
    env, params = make(env_id)
    found = highest_return(env, params, finite_mdp(env, params))
    assert found == (best if best is None else pytest.approx(best, rel=1e-5))


def test_highest_return_is_not_exceeded_by_any_recorded_ensemble():
    path = Path(__file__).parents[1] / "benchmarks" / "results" / "suite.json"
    checked = set()
    for row in json.loads(path.read_text())["rows"]:
        config = presets.config(row["preset"]).train
        env, params = make(config.env, parse_overrides(config.env_param))
        highest = highest_return(env, params, finite_mdp(env, params))
        if highest is not None:
            checked.add(row["preset"])
            recorded = [*row["beta0_return"]["values"], *row["greedy_experts"]["values"]]
            assert max(recorded) <= highest + 1e-3
    assert checked == set(presets.PRESETS) - {"breakout", "asterix", "point-robot", "reacher"}


def test_highest_return_of_a_subclass_is_unknown():
    class Generous(CartPole):
        """May pay otherwise."""

    env = Generous()
    assert highest_return(env, env.default_params, None) is None
