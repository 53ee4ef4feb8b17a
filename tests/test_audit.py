"""The audit on small worlds: what it finds, what it writes, what it refuses."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import run

import ape_jax
from ape_jax.core import tabular
from ape_jax.demonstrations import collect, files
from ape_jax.envs import GridWorld
from ape_jax.evaluation import attackers, records
from ape_jax.evaluation.audit_records import Audit
from ape_jax.observers import fitting


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
