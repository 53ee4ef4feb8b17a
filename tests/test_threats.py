"""The strongest attack, what it needs, and the verdict, from outcomes that nobody measured."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import report_sources
from hand_made import Coordinates, steps

from ape_jax.envs.world import World
from ape_jax.evaluation import attackers, threats, verdicts
from ape_jax.evaluation.attackers import ATTACKERS
from ape_jax.evaluation.audit_records import Curve
from ape_jax.evaluation.deployment import Outcome
from ape_jax.evaluation.intervals import Interval
from ape_jax.evaluation.threats import Scale
from ape_jax.observers.threats import THREATS
from ape_jax.types import SettingError

SCALE = Scale(np.array([0.0, 0.0]), -100.0, Interval.over_seeds)


def outcome(choice, score=None):
    """Returns in the episodes to choose by, and in those that score."""
    score = choice if score is None else score
    blank = np.zeros(2)
    return Outcome(np.full(2, score), np.full(2, choice), blank, blank)


OUTCOMES = {
    ("mixture", "sampled"): outcome(-1.0),
    ("behaviour_cloning", "sampled"): outcome(-60.0),
    ("behaviour_cloning", "greedy"): outcome(-90.0),
    ("best_temperature", "own"): outcome(-70.0),
    ("best_temperature", "best"): outcome(-20.0),
    ("latent", "sampled"): outcome(-50.0),
    ("latent", "best"): outcome(-30.0),
    ("offline_q", "own"): outcome(-40.0),
    ("from_observations", "sampled"): outcome(-45.0),
    ("dagger", "greedy"): outcome(-10.0),
}


def rows(outcomes=OUTCOMES, models=THREATS, scale=SCALE):
    return {row.threat: row for row in threats.threat_rows("run", models, outcomes, scale)}


def test_the_strongest_attack_of_each_threat_model():
    found = {name: (row.attacker, row.deployment) for name, row in rows().items()}
    assert found == {
        "pooled": ("behaviour_cloning", "sampled"),
        "sequences": ("latent", "sampled"),
        "rewards": ("offline_q", "own"),
        "states": ("from_observations", "sampled"),
        "online": ("best_temperature", "best"),
        "interactive": ("dagger", "greedy"),
    }


def test_it_is_chosen_by_other_episodes_than_those_that_score_it():
    """The lucky attack is best where it is scored, and is not chosen."""
    lucky = {
        ("behaviour_cloning", "sampled"): outcome(-50.0, -40.0),
        ("behaviour_cloning", "greedy"): outcome(-60.0, 0.0),
    }
    row = rows(lucky)["pooled"]
    assert (row.deployment, row.clone_return.mean, row.fraction.mean) == ("sampled", -40.0, 0.6)


def test_a_model_that_allows_more_is_never_weaker():
    for weaker, stronger in (
        ("pooled", "sequences"),
        ("sequences", "rewards"),
        ("rewards", "online"),
        ("states", "online"),
        ("online", "interactive"),
    ):
        assert set(THREATS[weaker].includes) < set(THREATS[stronger].includes)
        assert rows()[weaker].clone_return.mean <= rows()[stronger].clone_return.mean


def test_every_model_includes_itself_and_what_its_parts_include():
    for name, threat in THREATS.items():
        assert name in threat.includes
        assert set().union(*(THREATS[part].includes for part in threat.includes)) == set(
            threat.includes
        )


def test_yardsticks_attack_nobody():
    assert rows({("mixture", "sampled"): outcome(0.0)}) == {}
    assert threats.strongest({}, "interactive") is None


def test_who_tries_clones_needs_the_environment():
    assert attackers.threat_of("latent", "best") == "online"
    assert attackers.threat_of("latent", "greedy") == "sequences"
    assert attackers.threat_of("dagger", "best") == "interactive"
    assert attackers.threat_of("posterior", "best") is None
    assert {one.threat for one in ATTACKERS.values()} - {None} <= set(THREATS)


def test_shares_count_from_a_random_policy_to_the_ensemble():
    assert rows()["pooled"].fraction.mean == pytest.approx(0.4)
    worthless = SCALE._replace(pe_return=np.array([0.0, -100.0]))
    assert rows(scale=worthless)["pooled"].fraction is None


def few(clone, part):
    """Outcomes of one clone; five less with three steps than with four."""
    observer, label = clone.split(", ")
    assert label == ""
    lost = 5.0 * (4 - part.action.shape[1])
    return {
        way: outcome(float(one.clone_return[0]) - lost)
        for (name, way), one in OUTCOMES.items()
        if name == observer
    }


def seeds_of(*demonstrations):
    return jax.tree.map(lambda *x: jnp.stack(x), *demonstrations)


# Two seeds of four steps: three of an episode, and two episodes of two.
BOTH = seeds_of(
    steps(np.arange(4), np.zeros(4, int), [3, 1], np.ones(4), ends=[0]),
    steps(np.arange(4), np.zeros(4, int), [2, 2], np.ones(4), ends=[0, 1]),
)


def test_points_are_of_the_attackers_that_win():
    found = threats.points(list(rows().values()), few, BOTH, 3, SCALE)
    assert [point.threat for point in found] == list(THREATS)
    for point in found:
        full = rows()[point.threat]
        assert (point.num_steps, point.episodes) == (3, 1.5)
        assert (point.attacker, point.deployment) == (full.attacker, full.deployment)
        assert point.clone_return.mean == full.clone_return.mean - 5.0
        assert point.fraction.mean == pytest.approx(full.fraction.mean - 0.05)


def test_only_attackers_that_win_attack_again():
    asked = []

    def run(clone, part):
        asked.append(clone)
        return few(clone, part)

    threats.points(list(rows(models=["rewards", "pooled", "states"]).values()), run, BOTH, 3, SCALE)
    assert sorted(asked) == ["behaviour_cloning, ", "from_observations, ", "offline_q, "]


def test_all_demonstrations_are_not_attacked_again():
    found = threats.points(list(rows().values()), few, BOTH, 4, SCALE)
    for point in found:
        full = rows()[point.threat]
        assert (point.clone_return, point.fraction) == (full.clone_return, full.fraction)
        assert (point.num_steps, point.episodes) == (4, 2.0)


def test_who_lacks_something_in_few_steps_does_not_attack():
    """One step shows no order: latent and offline_q cannot run, and weaker attackers win."""
    found = threats.points(list(rows().values()), few, BOTH, 1, SCALE)
    attackers_of = {point.threat: point.attacker for point in found}
    assert attackers_of["sequences"] == attackers_of["rewards"] == "behaviour_cloning"
    assert attackers_of["interactive"] == "dagger"
    assert "states" not in attackers_of


def test_nobody_who_attacks_gives_no_points():
    assert threats.points([], few, BOTH, 3, SCALE) == ()
    assert threats.points([], few, BOTH, 4, SCALE) == ()


def test_each_row_gets_the_number_of_its_own_curve():
    some = list(rows(models=["pooled", "online"]).values())
    counted = threats.with_episodes(some, curve((1.0, 0.2), (10.0, 0.9)))
    assert [row.episodes_needed for row in counted] == [pytest.approx(10.0), None]
    assert [row.attacker for row in counted] == [row.attacker for row in some]


def curve(*points):
    """Points of episodes and share, of ten steps an episode."""
    return [
        Curve(
            defence="run",
            threat="pooled",
            num_steps=int(10 * episodes),
            episodes=episodes,
            attacker="behaviour_cloning",
            deployment="greedy",
            clone_return=Interval.over_seeds([0.0]),
            fraction=None if share is None else Interval.over_seeds([share]),
        )
        for episodes, share in points
    ]


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(1.0, 0.2), (10.0, 0.8), (100.0, 1.0)], 10 * math.sqrt(10)),  # Halfway, in logarithms.
        ([(1.0, 0.2), (10.0, 0.9)], 10.0),
        ([(100.0, 1.0), (1.0, 0.8)], 10.0),  # In any order.
        ([(7.0, 0.95), (70.0, 1.0)], 7.0),  # Fewer were not tried.
        ([(1.0, 0.2), (10.0, 0.95), (100.0, 0.3)], 10 ** (0.7 / 0.75)),  # The first time.
        ([(1.0, -0.5), (10.0, 1.3)], 10 ** (1.4 / 1.8)),
        ([(1.0, 0.2), (1.0, 0.95)], 1.0),  # More steps of one episode.
        ([(1.0, 0.2), (1000.0, 0.89)], None),
        ([(1.0, None), (10.0, 1.0)], None),
        ([], None),
    ],
)
def test_episodes_needed(points, expected):
    found = threats.episodes_needed(curve(*points))
    assert found == (None if expected is None else pytest.approx(expected))


def interval(low, high):
    return Interval(0.5 * (low + high), low, high, (low, high))


CHEAP, DEAR = interval(0.0, 0.1), interval(0.1, 0.2)
ONE_SEED = Interval(0.1, None, None, (0.1,))


@pytest.mark.parametrize(
    ("fraction", "price", "expected"),
    [
        (interval(0.1, 0.49), CHEAP, verdicts.PROTECTED),
        (interval(0.1, 0.49), DEAR, verdicts.NOT_PROTECTED),
        (interval(0.1, 0.49), None, verdicts.KEPT_OUT),
        (interval(0.3, 0.5), CHEAP, verdicts.UNDECIDED),
        (interval(0.3, 0.5), None, verdicts.UNDECIDED),
        (interval(0.3, 0.7), DEAR, verdicts.NOT_PROTECTED),
        (interval(0.5, 0.9), CHEAP, verdicts.NOT_PROTECTED),
        (interval(0.5, 0.9), None, verdicts.NOT_PROTECTED),
        (ONE_SEED, CHEAP, verdicts.UNDECIDED),
        (ONE_SEED, None, verdicts.UNDECIDED),
        (None, CHEAP, verdicts.UNDECIDED),
    ],
)
def test_verdicts(fraction, price, expected):
    assert verdicts.verdict(fraction, price) == expected


def test_the_price_is_a_share_of_what_there_is_to_lose():
    audit = report_sources.audit(random_return=-90.0, optimal_return=-10.0)
    priced = report_sources.defence(price=Interval.over_seeds([4.0, 8.0]))
    assert verdicts.price_share(audit, priced).values == (0.05, 0.1)
    assert verdicts.price_share(audit, report_sources.defence()) is None
    unknown = dataclasses.replace(audit, optimal_return=None)
    assert verdicts.price_share(unknown, priced) is None


def shown(lengths=(2, 3), **changes):
    count = sum(lengths)
    return steps(np.arange(count), np.zeros(count, int), lengths, **changes)


@pytest.mark.parametrize(
    ("demonstrations", "expected"),
    [
        (shown(reward=[0, 0, 0, 0, 1], ends=[1]), []),
        (shown(ends=[1]), ["rewards"]),
        (shown(reward=np.ones(5), limits=[0, 1]), ["ends"]),
        (shown([1] * 4, reward=np.ones(4), ends=[0]), ["order"]),
        (shown([1] * 4), ["rewards", "ends", "order"]),
    ],
)
def test_what_demonstrations_lack(demonstrations, expected):
    assert attackers.lacks(demonstrations) == expected
    seeds = jax.tree.map(lambda x: jnp.stack([x, x]), demonstrations)
    assert attackers.lacks(seeds) == expected


def test_needs_have_a_reason():
    assert {need for one in ATTACKERS.values() for need in one.needs} == set(attackers.NEEDS)


@pytest.fixture(scope="module")
def world(small_task) -> World:
    return small_task.world


def choose(world, models, names=tuple(ATTACKERS), has_experts=True):
    return attackers.choose(list(names), models, world, has_experts)


@pytest.mark.parametrize("model", THREATS)
def test_a_threat_model_leaves_out_who_needs_more(model, world):
    runs, skipped = choose(world, [model])
    needed = {ATTACKERS[name].threat for name in runs}
    assert needed <= {None, *THREATS[model].includes}
    assert model == "online" or model in needed  # Nobody but who tries clones needs it alone.
    beyond = {name for name, one in ATTACKERS.items() if one.threat not in needed}
    assert set(skipped) == {"mean_action", "gaussian_mixture"} | set(ATTACKERS) - set(runs)
    for name in beyond & set(skipped) - {"mean_action", "gaussian_mixture"}:
        assert skipped[name] == f"needs the threat model {ATTACKERS[name].threat}"


def test_several_threat_models_allow_what_each_does(world):
    runs, _ = choose(world, ["states", "sequences"])
    assert {"from_observations", "latent", "behaviour_cloning", "mixture"} <= set(runs)
    assert not {"offline_q", "dagger"} & set(runs)


def test_who_cannot_run_is_named_with_the_reason(world):
    runs, skipped = choose(world, list(THREATS), ["dagger", "latent", "mean_action"], False)
    assert runs == ["latent"]
    assert "needs the experts" in skipped["dagger"]
    assert "continuous actions" in skipped["mean_action"]


def test_where_observations_are_vectors_the_same_attackers_run():
    env = Coordinates(size=3, goal=(0, 1), horizon=8)
    runs, skipped = choose(World(env, env.default_params, 8), list(THREATS))
    assert set(runs) | set(skipped) == set(ATTACKERS)
    assert set(skipped) == {"mean_action", "gaussian_mixture"}


@pytest.mark.parametrize(
    ("models", "names", "message"),
    [
        (["telepathy"], ["latent"], "threats must be among pooled, sequences"),
        (["pooled"], ["spy"], "observers must be among mixture"),
        ([], ["latent"], "threats must hold one of pooled, sequences"),
        (["pooled"], ["latent"], "can run here; latent needs the threat model sequences"),
        (["pooled"], ["mean_action"], "mean_action is for continuous actions"),
    ],
)
def test_what_does_not_exist_or_cannot_run_is_refused(models, names, message, world):
    with pytest.raises(SettingError, match=message):
        choose(world, models, names)
