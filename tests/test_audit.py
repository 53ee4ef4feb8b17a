"""The audit on small worlds: what it finds, what it writes, what it refuses."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import run

import ape_jax
from ape_jax.core import tabular
from ape_jax.core.distributions import Categorical
from ape_jax.core.policies import TablePolicy
from ape_jax.demonstrations import collect, files
from ape_jax.envs import GridWorld
from ape_jax.evaluation import attackers, makers, measure, records, returns
from ape_jax.evaluation.audit_records import Audit
from ape_jax.evaluation.defences import as_tables
from ape_jax.evaluation.deployment import deploy, deploy_modes, step_log_probs
from ape_jax.evaluation.effort import Effort, Setting
from ape_jax.observers import fitting
from ape_jax.observers.latent import LatentMixture
from ape_jax.observers.threats import THREATS

EFFORT = Effort(
    num_steps=20_000,
    curve_steps=(100, 20_000),
    fit_updates=200,
    recurrent_updates=100,
    latent_restarts=2,
    gail_updates=250,
    practice_steps=20_000,
)

PLAIN = {"sampled", "tempered", "greedy"}
DEPLOYED = {
    "mixture": PLAIN,
    "posterior": PLAIN,
    "behaviour_cloning": PLAIN,
    "limited": PLAIN,
    "best_temperature": {"own", "best"},
    "epsilon": {"own", "best"},
    "escape": {"own"},
    "frame_stack": {f"{way}, k = {k}" for way in ("sampled", "greedy") for k in (1, 2, 4)},
    "latent": {"sampled", "greedy", "best"},
    "recurrent": PLAIN,
    "filtered": {
        f"{way}, {share}" for way in ("sampled", "greedy") for share in ("10%", "25%", "50%")
    },
    "advantage_weighted": {"sampled", "greedy"},
    "offline_q": {"own"},
    "shortest_path": {"own"},
    "iq_learn": {"sampled", "greedy"},
    "one_step": {"own"},
    "gail": {"sampled", "greedy"},
    "from_observations": {
        f"{way}{kind}" for way in ("sampled", "greedy") for kind in ("", ", shortest path")
    },
    "dagger": PLAIN,
}
"""Ways in which each observer of discrete actions acts."""


@pytest.fixture(scope="module")
def two_seeds(small_task):
    """Heads [2, E, S, A] of two random ensembles on the small grid, and their demonstrations."""
    keys = jax.random.split(jax.random.key(4), 2)
    heads = jax.vmap(lambda key: small_task.networks.init(key).heads)(keys)
    heads = jax.tree.map(lambda x: 1.5 * x, heads)
    shown = measure.demonstrate(small_task, keys, heads, EFFORT.num_steps)
    held_out = measure.demonstrate(small_task, jax.random.split(keys[0], 2), heads, 3_000)
    return keys, heads, shown, held_out


@pytest.fixture(scope="module")
def attack(small_task, two_seeds):
    """Outcomes of an observer against both seeds; each is attacked once."""
    found = {}

    def one(name):
        if name not in found:
            found[name] = measure.attack(small_task, EFFORT, name, *two_seeds)
        return found[name]

    return one


def test_cloning_agrees_with_the_posterior_observer(attack):
    cloned, ideal = attack("behaviour_cloning"), attack("posterior")
    np.testing.assert_allclose(
        cloned["sampled"].clone_return, ideal["sampled"].clone_return, atol=0.12
    )
    np.testing.assert_allclose(
        cloned["sampled"].log_likelihood, ideal["sampled"].log_likelihood, atol=0.02
    )


def test_one_of_several_clones_can_attack_alone(attack):
    alone, together = attack("filtered, 25%"), attack("filtered")
    assert sorted(alone) == ["greedy, 25%", "sampled, 25%"]
    for name, outcome in alone.items():
        np.testing.assert_allclose(outcome.clone_return, together[name].clone_return, rtol=1e-6)


def test_measures_are_the_exact_ones(attack, two_seeds, small_task, small_mdp):
    keys, heads, _, held_out = two_seeds
    measures = measure.measure(small_task, keys, heads, held_out)
    policies = jnp.exp(jax.vmap(small_task.networks.tabulate_experts)(heads))
    exact = jax.vmap(jax.vmap(tabular.policy_return, (None, 0)), (None, 0))(small_mdp, policies)
    np.testing.assert_allclose(measures.experts, exact, rtol=1e-5)
    floors = jax.vmap(tabular.cloning_floor, (None, 0))(small_mdp, policies)
    np.testing.assert_allclose(measures.floor, floors, rtol=1e-5)
    entropy = np.asarray(measures.posterior_entropy)
    np.testing.assert_allclose(entropy[:, 0], np.log(2), atol=1e-5)
    assert np.all(np.diff(entropy[:, :4]) < 0)
    assert np.all(entropy >= 0)
    # No clone of the state has a higher log-likelihood than the negative entropy of the mixture;
    # the ideal one has that, on 3,000 held-out steps whose terms lie within a few nats.
    ideal = attack("posterior")["sampled"]
    np.testing.assert_allclose(ideal.log_likelihood, -measures.mixture_entropy, atol=0.08)


@pytest.fixture(scope="module")
def optimal(small_task, small_mdp):
    """Demonstrations of two seeds of optimal experts, with the shapes of the others."""
    policy = tabular.optimal_policy(small_mdp)
    heads = as_tables(jnp.log(jnp.maximum(jnp.tile(policy, (2, 2, 1, 1)), 1e-30)))
    keys = jax.random.split(jax.random.key(0), 2)
    shown = measure.demonstrate(small_task, keys, heads, EFFORT.num_steps)
    held_out = measure.demonstrate(small_task, keys, heads, 3_000)
    return keys, heads, shown, held_out


def test_every_observer_of_discrete_actions_is_tested(small_task):
    runs, skipped = attackers.choose(
        list(attackers.ATTACKERS), list(THREATS), small_task.world, has_experts=True
    )
    assert set(runs) == set(DEPLOYED)
    assert set(skipped) == {"mean_action", "gaussian_mixture"}


@pytest.mark.parametrize("name", DEPLOYED)
def test_observers_of_optimal_experts_are_optimal(name, small_task, small_mdp, optimal):
    best = float(tabular.policy_return(small_mdp, tabular.optimal_policy(small_mdp)))
    outcomes = measure.attack(small_task, EFFORT, name, *optimal)
    assert outcomes.keys() == DEPLOYED[name]
    for deployment, outcome in outcomes.items():
        assert {x.shape for x in outcome} == {(2,)}
        assert np.all((outcome.agreement > 0) & (outcome.agreement <= 1))
        assert np.all(outcome.log_likelihood <= 0)
        # Those know little of cells far from the goal, or need far more updates than this.
        if name in ("limited", "filtered", "iq_learn"):
            assert np.all((outcome.clone_return >= -8) & (outcome.clone_return <= best + 0.03))
            continue
        # Those that remember are scored on 1,024 episodes with random starts.
        remembers = name in ("recurrent", "escape", "frame_stack")
        expected = pytest.approx([best, best], abs=0.15 if remembers else 0.03)
        assert outcome.clone_return.tolist() == expected, deployment
        if not remembers:
            np.testing.assert_array_equal(outcome.clone_return, outcome.choice_return)


@pytest.mark.parametrize("name", ["latent", "best_temperature"])
def test_the_best_that_is_tried_is_not_below_the_others(attack, name):
    outcomes = attack(name)
    for outcome in outcomes.values():
        assert np.all(outcomes["best"].clone_return >= outcome.clone_return - 1e-4)


def test_attackers_beat_plain_cloning_where_experts_err(attack):
    """Random experts: who plans with what they showed gets more than who repeats it."""
    plain = attack("behaviour_cloning")["sampled"].clone_return
    assert np.all(attack("offline_q")["own"].clone_return > plain + 0.5)


def test_modes_are_averaged_by_share_and_the_best_is_found(small_task, small_mdp, two_seeds):
    good = tabular.optimal_policy(small_mdp)
    bad = jnp.full_like(good, 0.2)
    tables = jnp.log(jnp.maximum(jnp.stack([bad, good, good]), 1e-30))
    modes = LatentMixture(TablePolicy(Categorical(tables)), jnp.array([0.75, 0.245, 0.005]), 5)
    held_out = jax.tree.map(lambda x: x[0], two_seeds[3])
    outcomes = deploy_modes(small_task.world, modes, held_out, jax.random.key(0), 256)
    exact = [float(tabular.policy_return(small_mdp, policy)) for policy in (bad, good)]
    expected = 0.75 * exact[0] + 0.25 * exact[1]
    assert float(outcomes["sampled"].clone_return) == pytest.approx(expected, rel=1e-4)
    assert float(outcomes["best"].clone_return) == pytest.approx(exact[1], rel=1e-4)


def test_step_log_probs_are_those_of_the_actions_taken(two_seeds, small_task):
    shown = jax.tree.map(lambda x: x[0, :50], two_seeds[2])
    table = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (9, 5)))
    expected = [float(table[o, a]) for o, a in zip(shown.observation, shown.action, strict=True)]
    np.testing.assert_allclose(
        step_log_probs(TablePolicy(Categorical(table)), shown), expected, rtol=1e-6
    )


def test_memory_and_no_memory_are_deployed_alike(small_task, two_seeds):
    """A policy that forgets everything is sampled to what it returns exactly."""

    class Forgetful:
        def initial_carry(self):
            return jnp.float32(0.0)

        def __call__(self, carry, observation, last_action):
            return carry, Categorical(table[observation])

    table = jax.nn.log_softmax(2.0 * jax.random.normal(jax.random.key(0), (9, 5)))
    held_out = jax.tree.map(lambda x: x[0, :200], two_seeds[3])
    deployed = [
        jax.jit(
            lambda policy=policy: deploy(
                small_task.world, policy, held_out, jax.random.key(1), 2048
            )
        )()
        for policy in (Forgetful(), TablePolicy(Categorical(table)))
    ]
    for name in ("sampled", "tempered", "greedy"):
        ours, exact = (outcomes[name] for outcomes in deployed)
        assert float(ours.clone_return) == pytest.approx(float(exact.clone_return), abs=0.4)
        assert float(ours.agreement) == pytest.approx(float(exact.agreement), rel=1e-4)


def test_limited_sees_no_further_than_it_may(two_seeds, small_task):
    """Steps after the limit change nothing."""
    keys, _, shown, _ = two_seeds
    one = jax.tree.map(lambda x: x[0], shown)
    changed = one._replace(action=one.action.at[200:].set(4))
    effort = Effort(limited_steps=200, limited_width=4, fit_updates=40)
    observer = makers.limited(Setting(small_task, effort, None))
    first, second = (jax.jit(observer.fit)(keys[0], data) for data in (one, changed))
    np.testing.assert_array_equal(*(returns.policy_table(clone, 9) for clone in (first, second)))


@pytest.fixture(scope="module")
def audited(small_audit):
    return records.read(Audit, small_audit / "audit.json")


def test_audit_writes_its_files(small_audit):
    names = {path.name for path in small_audit.iterdir()}
    figures = {"threats.png", "observers.png", "demonstrations.png", "posterior_entropy.png"}
    assert names == {"audit.json", "audit.md"} | figures


def test_python_gives_what_the_command_gives(small_run, audited):
    """Fewer observers change nothing for the others."""
    told = []
    again = ape_jax.audit(
        small_run,
        observers=["mixture"],
        defences=["single_optimal"],
        steps=2000,
        quick=True,
        progress=told.append,
    )
    assert again.rows == tuple(row for row in audited.rows if row.observer == "mixture")
    assert again.defences == audited.defences
    assert again.complete
    # For each ensemble: demonstrations, an observer, two points of the curve, and the threats.
    assert (told[-1].done, told[-1].total) == (10, 10)


def test_rows_are_consistent(audited, small_run):
    summary = json.loads((small_run / "summary.json").read_text())
    assert audited.fingerprint == summary["fingerprint"]
    assert audited.options.observers == "mixture,behaviour_cloning,limited,mean_action"
    assert audited.skipped.keys() == {"mean_action"}
    defences = {defence.name: defence for defence in audited.defences}
    assert list(defences) == ["run", "single_optimal"]
    for row in audited.rows:
        assert row.observer in ("mixture", "behaviour_cloning", "limited")
        assert row.deployment in ("sampled", "tempered", "greedy")
        clone, pe_return = np.array(row.clone_return.values), defences[row.defence].pe_return.values
        assert clone.shape == (2,)
        assert row.clone_return.low <= row.clone_return.mean <= row.clone_return.high
        np.testing.assert_allclose(row.gap.values, pe_return - clone)
        scale = np.subtract(pe_return, audited.random_return)
        if np.any(scale <= 0):  # Hardly trained: no better than random, so there is no scale.
            assert row.fraction is None
        else:
            expected = (clone - audited.random_return) / scale
            np.testing.assert_allclose(row.fraction.values, expected, rtol=1e-6)
    for defence in audited.defences:
        assert defence.worst_expert.mean <= defence.pe_return.mean + 1e-6
    assert defences["single_optimal"].price.mean == pytest.approx(0.0, abs=1e-4)
    uniform = tabular.policy_return(GridWorld().finite_mdp(), jnp.full((100, 5), 0.2))
    assert audited.random_return == pytest.approx(float(uniform), rel=1e-5)


def test_a_row_names_the_threat_model_that_it_needs(audited):
    sees = {row.observer: row.sees for row in audited.rows}
    assert sees == {"mixture": "experts", "behaviour_cloning": "pooled", "limited": "pooled"}


def test_each_threat_model_has_its_strongest_attack(audited):
    """Returns on the grid are exact, so the attack that is chosen is the best of the rows."""
    for defence in audited.defences:
        rows = [row for row in audited.rows_of(defence.name) if row.observer != "mixture"]
        found = audited.threats_of(defence.name)
        assert [row.threat for row in found] == [
            "pooled",
            "sequences",
            "rewards",
            "online",
            "interactive",
        ]
        for one in found:
            assert (one.attacker, one.deployment) == (rows[0].observer, rows[0].deployment)
            assert (one.clone_return, one.fraction) == (rows[0].clone_return, rows[0].fraction)


def test_curves_are_of_the_attacker_that_wins(audited):
    winners = {(row.defence, row.threat): row.attacker for row in audited.threats}
    numbers = {about: [] for about in winners}
    for point in audited.curves:
        about = point.defence, point.threat
        assert point.attacker == winners[about]
        assert 1 <= point.episodes <= point.num_steps
        numbers[about].append(point.num_steps)
    assert set(map(tuple, numbers.values())) == {(1000, 2000)}


def test_audit_tables_have_the_strongest_first(small_audit):
    text = (small_audit / "audit.md").read_text()
    section = text.split("## single optimal policy")[1].split("##")[0]
    threats, rows = section.strip().split("\n\n")[1:]
    rows = [line.split("|") for line in rows.splitlines()[2:]]
    returns = [float(row[4].split()[0]) for row in rows]
    assert len(returns) == 9
    assert returns == sorted(returns, reverse=True)
    cells = [line.split("|") for line in threats.splitlines()[2:]]
    assert [row[1].strip() for row in cells] == [
        "pooled",
        "sequences",
        "rewards",
        "online",
        "interactive",
    ]
    assert "mean_action" in text


def test_audit_of_a_file_alone(small_run, tmp_path):
    shown = tmp_path / "shown.npz"
    assert run("demos", small_run, "--steps", "3000", "--without-expert", "--out", shown) == 0
    found = ape_jax.audit(
        shown, ["posterior", "behaviour_cloning", "best_temperature"], seeds=2, quick=True
    )
    returns = collect.complete_returns(files.load(shown).demonstrations)
    (defence,) = found.defences
    assert defence.pe_return.mean == pytest.approx(returns.mean(), abs=3.0)
    assert defence.worst_expert is None
    assert {row.observer for row in found.rows} == {"behaviour_cloning", "best_temperature"}
    assert found.skipped.keys() == {"posterior"}


def test_attackers_that_lack_something_are_skipped_with_the_reason(small_run, tmp_path):
    """A file without rewards, in which only the time limit ends an episode."""
    shown, poor = tmp_path / "shown.npz", tmp_path / "poor.npz"
    assert run("demos", small_run, "--steps", "3000", "--out", shown) == 0
    file = files.load(shown)
    steps = file.demonstrations
    ends = steps.terminated | steps.truncated
    steps = steps._replace(reward=0 * steps.reward, terminated=np.zeros_like(ends), truncated=ends)
    files.save(poor, file.env_id, steps)
    names = ["behaviour_cloning", "filtered", "offline_q", "shortest_path"]
    found = ape_jax.audit(poor, names, seeds=1, quick=True)
    assert {row.observer for row in found.rows} == {"behaviour_cloning"}
    assert {name: reason.split(";")[0] for name, reason in found.skipped.items()} == {
        "filtered": "needs rewards",
        "offline_q": "needs rewards",
        "shortest_path": "needs ends of the task",
    }
    assert found.complete


def test_a_seed_has_the_same_number_in_every_audit(small_task, two_seeds):
    """Two seeds, and the second of them alone."""
    heads = two_seeds[1]
    both, alone = (
        ape_jax.audit(
            small_task,
            "behaviour_cloning",
            steps=200,
            quick=True,
            heads=jax.tree.map(lambda x, first=first: x[first:], heads),
            first_seed=4 + first,
        )
        for first in (0, 1)
    )
    for ours, expected in zip(both.rows, alone.rows, strict=True):
        assert ours.clone_return.values[1] == pytest.approx(expected.clone_return.mean, rel=1e-5)
    assert both.rows[0].clone_return.values[0] != alone.rows[0].clone_return.mean


def test_threat_models_leave_observers_out(small_task, two_seeds):
    names = ["posterior", "behaviour_cloning", "offline_q"]
    found = ape_jax.audit(
        small_task,
        names,
        steps=200,
        quick=True,
        heads=two_seeds[1],
        threats=["pooled", "sequences"],
    )
    assert {row.observer for row in found.rows} == {"posterior", "behaviour_cloning"}
    assert [row.threat for row in found.threats] == ["pooled", "sequences"]
    assert found.options.threats == "pooled,sequences"
    assert found.skipped == {"offline_q": "needs the threat model rewards"}


def test_audit_of_a_task_is_that_of_its_experts(small_task, two_seeds):
    """The heads are given, and the environment has no registered name."""
    heads = two_seeds[1]
    found = ape_jax.audit(small_task, ["posterior"], steps=200, heads=heads)
    policies = jnp.exp(jax.vmap(small_task.networks.tabulate_experts)(heads))
    each = jax.vmap(jax.vmap(tabular.policy_return, (None, 0)), (None, 0))
    expected = each(small_task.world.mdp, policies).mean(axis=1)
    np.testing.assert_allclose(found.defences[0].pe_return.values, expected, rtol=1e-5)
    assert (found.horizon, found.seeds) == (8, 2)
    assert (found.threats, found.curves) == ((), ())  # A yardstick attacks nobody.


BAD = [
    (["absent"], "run must be a run of ape-jax train or a file of demonstrations"),
    (["--observers", "spy"], "observers must be among mixture"),
    (["--threats", "telepathy"], "threats must be among pooled"),
    (["--threats", "pooled", "--observers", "dagger"], "observers must hold one that can run here"),
    (["--observers", "mean_action"], "observers must hold one that can run here"),
    (["--defences", "moat"], "defences must be among single_optimal"),
    (["--observers", ","], "observers must hold one that can run here; got none"),
    (["--defences", ","], "defences must hold one where there is no run; got none"),
    (["--seeds", "0"], "seeds must be at least 1; got 0"),
    (["--steps", "1"], "steps must be at least 2; got 1"),
    (["RUN", "--seeds", "3"], "seeds must be at most the 2 of the run; got 3"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=lambda value: " ".join(value)[:40])
def test_bad_settings_of_an_audit_get_one_message(arguments, message, small_run, tmp_path, capfd):
    out = tmp_path / "audit"
    arguments = [str(small_run) if argument == "RUN" else argument for argument in arguments]
    assert run("audit", *arguments, "--out", out) == 2
    printed = " ".join(capfd.readouterr().err.split())
    assert message in printed
    assert "Traceback" not in printed
    assert not out.exists()


def test_audit_refuses_a_file_that_holds_something_else(tmp_path, capfd):
    bad = tmp_path / "bad.npz"
    bad.write_bytes(b"no demonstrations")
    assert run("audit", bad, "--out", tmp_path / "audit") == 2
    assert "error: " in capfd.readouterr().err
    assert not (tmp_path / "audit").exists()


def test_interrupted_audit_keeps_what_is_finished(small_run, tmp_path, monkeypatch):
    def interrupted(setting):
        raise KeyboardInterrupt

    cloning = attackers.ATTACKERS["behaviour_cloning"]._replace(make=interrupted)
    monkeypatch.setitem(attackers.ATTACKERS, "behaviour_cloning", cloning)
    out = tmp_path / "audit"
    arguments = ["--observers", "mixture,behaviour_cloning", "--steps", "2020", "--out", out]
    assert run("audit", small_run, *arguments) == 130
    found = records.read(Audit, out / "audit.json")
    assert {row.observer for row in found.rows} == {"mixture"}
    assert not found.complete
    assert (out / "audit.md").exists()


def test_resample_draws_whole_episodes(small_task, two_seeds):
    shown = jax.tree.map(lambda x: x[0, :400], two_seeds[2])
    given, kept = collect.hold_out(shown)
    assert len(given.action) + len(kept.action) == 400
    assert int(kept.episode[0]) == 0
    sample = collect.resample(given, 7)
    assert len(sample.action) == len(given.action)
    assert int(sample.episode[0]) == 0
    assert set(np.diff(np.asarray(sample.episode))) <= {0, 1}
    episodes = {
        tuple(np.asarray(given.observation)[np.asarray(given.episode) == number])
        for number in range(int(given.episode[-1]) + 1)
    }
    for number in range(int(sample.episode[-1])):
        rows = np.asarray(sample.episode) == number
        assert tuple(np.asarray(sample.observation)[rows]) in episodes


def test_resample_keeps_what_is_held_out_apart(two_seeds):
    """No episode is both fitted and held out: their observations and actions are marked."""
    shown = jax.tree.map(lambda x: x[0, :600], two_seeds[2])
    marked = shown._replace(action=shown.episode)
    sample = collect.resample(marked, 3)
    kept = np.asarray(fitting.held_out(sample))
    originals = np.asarray(sample.action)
    assert kept.any()
    assert not set(originals[kept]) & set(originals[~kept])
