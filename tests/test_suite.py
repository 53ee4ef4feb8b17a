"""The suite: rows of made-up numbers through the command, and one real row."""

import dataclasses
import errno

import jax
import numpy as np
import pytest

import ape_jax
from ape_jax import cli, presets
from ape_jax.algorithms import steps_per_update
from ape_jax.algorithms.task import make_task
from ape_jax.config import PGConfig, PGHypers, PPOConfig, PPOHypers, RunConfig, resolve
from ape_jax.evaluation import records, suite, suite_training
from ape_jax.evaluation.audit_records import Audit, AuditRow, Defence, ThreatRow
from ape_jax.evaluation.intervals import Interval
from ape_jax.evaluation.returns import Spread
from ape_jax.evaluation.suite import EFFORT
from ape_jax.evaluation.suite_records import Suite
from ape_jax.observers.threats import THREATS
from ape_jax.reporting import suite_tables
from ape_jax.runs import metrics
from ape_jax.settings.audit import AuditSettings
from ape_jax.training.trainer import seed_keys

CONFIG = PPOConfig(
    env="CartPole-v1",
    env_param=("max_steps_in_episode=20",),
    head="mlp",
    hidden_sizes=(4,),
    observer="learned",
    constraint="gate",
    envs_per_expert=4,
    rollout_length=8,
    num_epochs=1,
    num_minibatches=2,
    num_updates=2,
)
GAUSSIAN = dataclasses.replace(
    CONFIG,
    env="Pendulum-v1",
    env_param=("max_steps_in_episode=10",),
    head="gaussian",
    num_experts=3,
    envs_per_expert=2,
)
SETTINGS = {
    "pole": (CONFIG, PPOHypers(min_return=5.0)),
    "swing": (GAUSSIAN, PPOHypers(beta=0.5, min_return=-100.0)),
}
TINY = {name: RunConfig(*settings).to_flat() for name, settings in SETTINGS.items()}
# The reward of an episode of so many steps; of Pendulum the worst is π² + 0.1 · 8² + 0.001 · 2².
RANGES = {"pole": (1.0, 20.0), "swing": (-162.8, 0.0)}
CLONES = ("behaviour_cloning_sampled", "behaviour_cloning_greedy", "posterior_sampled")


def run(*arguments):
    """Exit code of the command."""
    with pytest.raises(SystemExit) as error:
        cli.main(["suite", *map(str, arguments)])
    return error.value.code


@pytest.fixture(autouse=True)
def tiny_presets(monkeypatch):
    monkeypatch.setattr(presets, "PRESETS", TINY)


def row(name, config, effort):
    """A row of numbers that were never measured, all different."""
    train, generator = config.train, np.random.default_rng(config.train.num_experts)
    names = [*CLONES, *(["mean_action_own"] if train.head == "gaussian" else [])]

    def returns():
        return Interval.over_seeds(generator.uniform(*RANGES[name], config.seeds))

    def clone(which, clone_name):
        observer, deployment = clone_name.rsplit("_", 1)
        return AuditRow(
            defence=which,
            observer=observer,
            deployment=deployment,
            sees="pooled",
            clone_return=returns(),
            gap=returns(),
            fraction=None,
            agreement=returns(),
            log_likelihood=None,
        )

    def audit(which, count):
        experts = generator.uniform(*RANGES[name], (config.seeds, count))
        greedy = dict.fromkeys(("greedy_experts", "worst_greedy_expert"), returns())
        defence = Defence(
            name=which,
            label=which,
            pe_return=Interval.over_seeds(experts.mean(axis=1)),
            expert_returns=tuple(map(tuple, experts.tolist())),
            worst_expert=Interval.over_seeds(experts.min(axis=1)),
            **greedy,
        )
        threat = ThreatRow(
            defence=which,
            threat="pooled",
            attacker="behaviour_cloning",
            deployment="sampled",
            clone_return=returns(),
            fraction=Interval.over_seeds(generator.uniform(size=config.seeds)),
            episodes_needed=30.0,
        )
        return Audit(
            env=train.env,
            horizon=10,
            fingerprint=None,
            options=AuditSettings(),
            complete=True,
            seeds=config.seeds,
            num_steps=effort.num_steps,
            random_return=RANGES[name][0],
            optimal_return=None,
            threats=(threat,),
            rows=tuple(clone(which, name) for name in names),
            defences=(defence,),
            skipped={},
        )

    counts = {"ensemble": train.num_experts, "beta0": train.num_experts, "single": 1}
    audits = {which: audit(which, count) for which, count in counts.items()}
    return suite.make_row(name, config, effort, audits, 1.0, Spread(RANGES[name][0], 0.0))


def rows(configs, effort, progress=None, keep=None):
    """In the place of ``suite_rows``."""
    for name, config in configs.items():
        yield row(name, config, effort)


@pytest.fixture
def written(tmp_path):
    """Made-up results, as the command keeps them."""
    out = tmp_path / "suite.json"
    configs = {name: RunConfig(*settings, 2, 1000) for name, settings in SETTINGS.items()}
    records.write(out, Suite(tuple(rows(configs, EFFORT))))
    return out


def read(path):
    return records.read(Suite, path).rows


@pytest.mark.slow
def test_row_holds_intervals_of_returns_that_there_are():
    config = RunConfig(*SETTINGS["swing"])
    observers = ("behaviour_cloning", "posterior", "mean_action", "filtered")
    asked = {"seeds": 2, "first_seed": 7, "quick": True, "observers": observers}
    found = ape_jax.suite({"swing": config}, **asked).rows
    (row,), (least, most) = found, RANGES["swing"]
    assert (row.preset, row.env, row.seeds) == ("swing", "Pendulum-v1", 2)
    assert row.config == RunConfig(*SETTINGS["swing"], 2, 7).to_flat()
    single = row.single_expert_control
    tempered = {"behaviour_cloning_tempered", "posterior_tempered", "posterior_greedy"}
    assert set(single.clones) == {*CLONES, *tempered, "mean_action"}
    shares = {
        f"filtered_{way}, {x}" for way in ("sampled", "greedy") for x in ("10%", "25%", "50%")
    }
    assert set(row.clones) == {*single.clones, *shares}
    assert [threat.threat for threat in row.threats] == [x for x in THREATS if x != "states"]
    assert least <= row.random_return <= most
    intervals = [row.pe_return, row.worst_expert, row.greedy_experts, row.beta0_return]
    intervals += [*row.clones.values(), single.pe_return, *single.clones.values()]
    for interval in intervals:
        assert len(interval.values) == 2
        assert interval.low <= interval.mean <= interval.high
        assert least <= min(interval.values) <= max(interval.values) <= most
    # The worst of one expert is itself, and of several no better than their mean.
    assert single.worst_expert == single.pe_return
    assert np.all(np.less(row.worst_expert.values, row.pe_return.values))


@pytest.mark.parametrize("only", ["swing", "Pendulum-v1", " swing ,"])
def test_rows_that_are_not_asked_for_are_kept(only, written, monkeypatch):
    before = read(written)
    asked = []

    def measure(configs, effort, progress, keep):
        asked.append((configs, effort))
        yield dataclasses.replace(before[1], single_beta=123_456.0)

    monkeypatch.setattr(suite, "suite_rows", measure)
    assert run("--only", only, "--seeds", 2, "--out", written) == 0
    assert asked == [({"swing": RunConfig(*SETTINGS["swing"], 2, 1000)}, EFFORT)]
    assert read(written) == (before[0], dataclasses.replace(before[1], single_beta=123_456.0))
    blocks = written.with_suffix(".md").read_text().split("\n\n")
    tables = [block.splitlines() for block in blocks if block.startswith("|")]
    assert len(tables) == 3
    for lines in tables:
        assert [line.split(" (")[0] for line in lines[2:]] == ["| CartPole-v1", "| Pendulum-v1"]
        assert len({line.count("|") for line in lines}) == 1
    assert written.with_suffix(".png").exists()


def test_quick_trains_a_twentieth():
    long = RunConfig(dataclasses.replace(CONFIG, num_updates=300), SETTINGS["pole"][1])
    configs = suite.suite_configs({"pole": long}, 2, 0, quick=True)
    assert configs["pole"].train == dataclasses.replace(CONFIG, num_updates=15)


def test_tables_on_the_terminal_are_whole_at_eighty_characters(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(suite, "suite_rows", rows)
    monkeypatch.setenv("COLUMNS", "80")
    out = tmp_path / "suite.json"
    assert run("--out", out) == 0
    printed = capfd.readouterr().out
    assert "…" not in printed
    for line in suite_tables.suite_lines(records.read(Suite, out)):
        assert all(cell in printed for cell in line)
    assert printed.count("mean action") == 1  # Of the continuous one.


def test_one_seed_has_no_interval(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "suite_rows", rows)
    assert run("--seeds", 1, "--out", tmp_path / "suite.json") == 0
    for found in read(tmp_path / "suite.json"):
        assert (found.pe_return.low, found.pe_return.high) == (None, None)
        assert len(found.pe_return.values) == 1
    assert "[" not in (tmp_path / "suite.md").read_text()


def test_interrupt_keeps_the_rows_that_are_finished(written, monkeypatch):
    before = read(written)

    def measure(*_):
        yield dataclasses.replace(before[0], single_beta=7.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(suite, "suite_rows", measure)
    assert run("--seeds", 2, "--out", written) == cli.INTERRUPTED
    assert read(written) == (dataclasses.replace(before[0], single_beta=7.0), before[1])


def test_full_disk_keeps_the_rows_that_are_written(tmp_path, monkeypatch, capfd):
    out = tmp_path / "suite.json"
    write = metrics.write_text
    writes = []

    def fill(path, text):
        writes.append(path)
        if len(writes) > 1:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, text)

    monkeypatch.setattr(suite, "suite_rows", rows)
    monkeypatch.setattr(metrics, "write_text", fill)
    assert run("--out", out) == 1
    printed = " ".join(capfd.readouterr().err.split())
    assert "error: [Errno 28] No space left on device" in printed
    assert "Traceback" not in printed
    assert [row.preset for row in read(out)] == ["pole"]


@pytest.mark.slow
def test_images_are_trained_seed_by_seed():
    """Seeds side by side are those of the row above."""
    told = []
    config = dataclasses.replace(
        CONFIG, env="Breakout-MinAtar", env_param=(), head="conv", num_updates=1
    )
    hypers = PPOHypers(min_return=0.0)
    task = make_task(config)
    heads = suite_training.train_seeds("one", task, seed_keys(7, 2), hypers, told.append)
    assert all(len(x) == 2 for x in jax.tree.leaves(heads))
    assert told[1::2] == ["one 1/1, seed 1/2", "one 1/1, seed 2/2"]


BAD = [
    (["--only", "pole,ant"], "only must name presets or environments of pole, swing; got 'ant'"),
    (["--only", ","], "only must name a preset or an environment"),
    (["--seeds", "0"], "seeds must be at least 1; got 0"),
    (["--seeds", "two"], "--seeds"),
    (["--first-seed", "-1"], "first_seed must be at least 0"),
    (["--out", "suite.md"], "out must be named *.json; got suite.md"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=lambda value: " ".join(value)[:30])
def test_bad_settings_get_one_message_and_leave_nothing(arguments, message, tmp_path, capfd):
    out = tmp_path / "new" / "suite.json"
    assert run("--out", out, *arguments) == 2
    printed = " ".join(capfd.readouterr().err.replace("│", " ").split())
    assert message in printed
    assert "Traceback" not in printed
    assert not out.parent.exists()


@pytest.mark.parametrize("content", ["seeds: 2", '{"rows": 3}', '{"rows": [{"preset": "pole"}]}'])
def test_file_that_is_not_of_the_suite_is_left_alone(content, tmp_path, capfd):
    out = tmp_path / "table.json"
    out.write_text(content)
    assert run("--out", out) == 2
    assert "table.json must" in " ".join(capfd.readouterr().err.split())
    assert out.read_text() == content
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]


@pytest.mark.parametrize("others", ["--quick --seeds 2", "--seeds 3", "--seeds 2 --first-seed 0"])
def test_rows_of_other_seeds_and_another_effort_are_left_alone(others, written, monkeypatch, capfd):
    monkeypatch.setattr(suite, "suite_rows", rows)
    before = written.read_bytes()
    assert run(*others.split(), "--out", written) == 2
    message = "out must hold rows of the same seeds and effort"
    assert message in " ".join(capfd.readouterr().err.split())
    assert written.read_bytes() == before


def test_row_of_a_preset_that_has_changed_is_not_kept_silently(written, monkeypatch, capfd):
    monkeypatch.setattr(suite, "suite_rows", rows)
    changed = TINY["pole"] | {"min_return": 6.0}
    monkeypatch.setattr(presets, "PRESETS", TINY | {"pole": changed})
    before = written.read_bytes()
    assert run("--seeds", 2, "--only", "swing", "--out", written) == 2
    assert "add pole to --only" in " ".join(capfd.readouterr().err.split())
    assert written.read_bytes() == before
    assert run("--seeds", 2, "--only", "swing,pole", "--out", written) == 0


def test_rows_of_presets_that_there_are_no_more_are_kept(written, monkeypatch):
    monkeypatch.setattr(suite, "suite_rows", rows)
    monkeypatch.setattr(presets, "PRESETS", {"swing": TINY["swing"]})
    assert run("--seeds", 2, "--only", "swing,Pendulum-v1", "--out", written) == 0
    assert [row.preset for row in read(written)] == ["swing", "pole"]


def test_interrupt_before_the_first_row_writes_nothing(tmp_path, monkeypatch):
    def measure(*_):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(suite, "suite_rows", measure)
    assert run("--out", tmp_path / "suite.json") == cli.INTERRUPTED
    assert list(tmp_path.iterdir()) == []


def test_controls_differ_from_the_ensemble_in_what_they_are_named_after():
    hypers = PPOHypers(beta=2.0, min_return=5.0, temperature=0.3)
    same = {"config": CONFIG, "hypers": hypers}
    assert suite_training.variant("ensemble", **same) == (CONFIG, hypers)
    alone = dataclasses.replace(hypers, beta=0.0, min_return=None)
    assert suite_training.variant("beta0", **same) == (
        dataclasses.replace(CONFIG, observer="none"),
        alone,
    )
    assert suite_training.variant("single", **same) == (
        dataclasses.replace(CONFIG, num_experts=1, observer="uniform"),
        hypers,
    )


def test_control_of_the_policy_gradient_keeps_its_observer():
    """It cannot do without; at β = 0 nothing follows from it."""
    config = PGConfig(observer="posterior")
    ours, hypers = suite_training.variant("beta0", config, PGHypers())
    assert (ours, hypers.beta) == (config, 0.0)


REAL = dict(presets.PRESETS)


@pytest.mark.parametrize("name", REAL)
def test_every_preset_and_its_controls_make_a_task(name):
    for which in suite_training.VARIANTS:
        settings = resolve(REAL[name])
        config, _ = suite_training.variant(which, settings.train, settings.hypers)
        assert make_task(config).networks.num_experts == config.num_experts


def test_steps_of_an_update_are_those_of_all_environments():
    """Four environments an expert, as many for the observer; twenty steps or segments of 8."""
    settings = dataclasses.replace(CONFIG, num_experts=3)
    alone = dataclasses.replace(settings, observer="none")
    whole = PGConfig(
        env=settings.env, env_param=settings.env_param, head="mlp", num_experts=3, envs_per_expert=4
    )
    counts = [steps_per_update(make_task(config)) for config in (settings, alone, whole)]
    assert counts == [2 * 3 * 4 * 8, 3 * 4 * 8, 2 * 3 * 4 * 20]
