import dataclasses
import errno
import json
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from ape_jax import cli, presets
from ape_jax.algorithms import steps_per_update
from ape_jax.algorithms.task import make_task
from ape_jax.config import PGConfig, PPOConfig, PPOHypers, RunConfig
from ape_jax.evaluation import suite
from ape_jax.evaluation.returns import Spread
from ape_jax.observers import Posterior
from ape_jax.reporting import tables
from ape_jax.runs import metrics
from ape_jax.training.trainer import Chunk, seed_keys

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
TINY = {
    "pole": presets.Preset(CONFIG, PPOHypers(min_return=5.0)),
    "swing": presets.Preset(GAUSSIAN, PPOHypers(beta=0.5, min_return=-100.0)),
}
# The reward of an episode of so many steps; of Pendulum the worst is π² + 0.1 · 8² + 0.001 · 2².
RANGES = {"pole": (1.0, 20.0), "swing": (-162.8, 0.0)}
CLONES = {"behaviour_cloning_sampled", "behaviour_cloning_greedy", "posterior_sampled"}
INTERVAL = {"mean", "low", "high", "values"}


def run(*arguments):
    """Exit code of the command."""
    with pytest.raises(SystemExit) as error:
        cli.main(["suite", *map(str, arguments)])
    return error.value.code


@pytest.fixture(autouse=True)
def tiny_presets(monkeypatch):
    monkeypatch.setattr(presets, "PRESETS", TINY)


def row(name, config, effort, report=None):
    """Of numbers that were never measured, all different."""
    train, generator = config.train, np.random.default_rng(config.train.num_experts)
    names = CLONES | ({"mean_action"} if train.head == "gaussian" else set())

    def returns(*axes):
        return generator.uniform(*RANGES[name], (config.seeds, *axes))

    def of_experts(count):
        clones = {name: returns() for name in sorted(names)}
        return suite.Measured(returns(count), returns(count), clones)

    counts = {"ensemble": train.num_experts, "beta0": train.num_experts, "single": 1}
    results = {which: of_experts(count) for which, count in counts.items()}
    return suite.row(name, config, effort, results, Spread(RANGES[name][0], 0.0), 1234.5)


@pytest.fixture
def written(tmp_path):
    """Made-up results, as the command keeps them."""
    out = tmp_path / "suite.json"
    rows = [
        row(name, RunConfig(*preset, 2, 1000), suite.SuiteEffort()) for name, preset in TINY.items()
    ]
    out.write_text(json.dumps({"rows": rows}))
    return out


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Real results of both presets."""
    out = tmp_path_factory.mktemp("suite") / "new" / "suite.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(presets, "PRESETS", TINY)
        patch.setattr(suite, "Posterior", partial(Posterior, num_steps=2000, num_updates=20))
        assert run("--quick", "--seeds", 2, "--first-seed", 7, "--out", out) == 0
    return out


@pytest.mark.slow
def test_suite_writes_a_row_and_a_line_of_every_preset(measured):
    assert {path.name for path in measured.parent.iterdir()} == {
        "suite.json",
        "suite.md",
        "suite.png",
    }
    rows = json.loads(measured.read_text(), parse_constant=pytest.fail)["rows"]
    assert [row["preset"] for row in rows] == ["pole", "swing"]
    assert [row["env"] for row in rows] == ["CartPole-v1", "Pendulum-v1"]
    for row, (config, hypers) in zip(rows, TINY.values(), strict=True):
        assert row["seeds"] == 2
        assert row["num_experts"] == config.num_experts
        assert row["config"] == RunConfig(config, hypers, 2, 7).to_flat()
        assert row["effort"]["num_steps"] == 25_600
        assert row["steps_per_second"] is None  # One chunk: compiling was part of it.
        clones = CLONES | ({"mean_action"} if config.head == "gaussian" else set())
        assert set(row["clones"]) == clones
        assert set(row["single_expert_control"]["clones"]) == clones
    lines = measured.with_suffix(".md").read_text().splitlines()
    assert lines[0].startswith("| environment |")
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| CartPole-v1 (E = 2)",
        "| Pendulum-v1 (E = 3)",
    ]
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_intervals_are_of_two_seeds_and_hold_returns_that_there_are(measured, name):
    (row,) = (r for r in json.loads(measured.read_text())["rows"] if r["preset"] == name)
    single = row["single_expert_control"]
    summaries = [
        *(row[key] for key in ("pe_return", "worst_expert", "greedy_experts", "beta0_return")),
        *row["clones"].values(),
        *(single[key] for key in ("pe_return", "worst_expert", "greedy_experts")),
        *single["clones"].values(),
    ]
    least, most = RANGES[name]
    assert least <= row["random_return"] <= most
    for summary in summaries:
        assert set(summary) == INTERVAL
        assert len(summary["values"]) == 2
        assert np.mean(summary["values"]) == pytest.approx(summary["mean"])
        assert least <= summary["low"] <= summary["mean"] <= summary["high"] <= most
    # The worst of one expert is itself, and of several no better than their mean.
    assert single["worst_expert"] == single["pe_return"]
    assert np.all(np.less(row["worst_expert"]["values"], row["pe_return"]["values"]))


@pytest.mark.parametrize("only", ["swing", "Pendulum-v1", " swing ,"])
def test_rows_that_are_not_asked_for_are_kept(written, monkeypatch, only):
    before = json.loads(written.read_text())["rows"]
    asked = []

    def measure(name, config, effort, report):
        asked.append((name, config, effort))
        return {**before[1], "steps_per_second": 123_456.0}

    monkeypatch.setattr(suite, "run", measure)
    assert run("--only", only, "--seeds", 2, "--out", written) == 0
    assert asked == [("swing", RunConfig(*TINY["swing"], 2, 1000), suite.SuiteEffort())]
    after = json.loads(written.read_text())["rows"]
    assert after == [before[0], {**before[1], "steps_per_second": 123_456.0}]
    lines = written.with_suffix(".md").read_text().splitlines()
    assert [line.split(" (")[0] for line in lines[2:]] == ["| CartPole-v1", "| Pendulum-v1"]
    assert lines[3].endswith(" 123,456 |")


def test_quick_trains_a_twentieth_and_shows_a_tenth(tmp_path, monkeypatch):
    long = TINY["pole"]._replace(train=dataclasses.replace(CONFIG, num_updates=300))
    monkeypatch.setattr(presets, "PRESETS", {"pole": long})
    asked = []

    def measure(name, config, effort, report):
        asked.append((config.train, effort.num_steps))
        return row(name, config, effort)

    monkeypatch.setattr(suite, "run", measure)
    assert run("--quick", "--out", tmp_path / "suite.json") == 0
    expected = dataclasses.replace(CONFIG, num_updates=15)
    assert asked == [(expected, suite.SuiteEffort().num_steps // 10)]


def test_tables_on_the_terminal_are_whole_at_eighty_characters(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(suite, "run", row)
    monkeypatch.setenv("COLUMNS", "80")
    out = tmp_path / "suite.json"
    assert run("--out", out) == 0
    printed = capfd.readouterr().out
    assert "…" not in printed
    for line in tables.suite_lines(json.loads(out.read_text())["rows"]):
        assert all(cell in printed for cell in line)
    assert printed.count("mean action") == 1  # Of the continuous one.


def test_one_seed_has_no_interval(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "run", row)
    assert run("--seeds", 1, "--out", tmp_path / "suite.json") == 0
    for written in json.loads((tmp_path / "suite.json").read_text())["rows"]:
        assert (written["pe_return"]["low"], written["pe_return"]["high"]) == (None, None)
        assert len(written["pe_return"]["values"]) == 1
    assert "[" not in (tmp_path / "suite.md").read_text()


def test_interrupt_keeps_the_rows_that_are_finished(written, monkeypatch):
    before = json.loads(written.read_text())["rows"]

    def measure(name, *rest):
        if name == "swing":
            raise KeyboardInterrupt
        return {**before[0], "steps_per_second": 1.0}

    monkeypatch.setattr(suite, "run", measure)
    assert run("--seeds", 2, "--out", written) == cli.INTERRUPTED
    rows = json.loads(written.read_text())["rows"]
    assert rows == [{**before[0], "steps_per_second": 1.0}, before[1]]


def test_full_disk_keeps_the_rows_that_are_written(tmp_path, monkeypatch, capfd):
    out = tmp_path / "suite.json"
    write = metrics.write_text
    writes = []

    def fill(path, text):
        writes.append(path)
        if len(writes) > 1:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, text)

    monkeypatch.setattr(suite, "run", row)
    monkeypatch.setattr(metrics, "write_text", fill)
    assert run("--out", out) == 1
    printed = " ".join(capfd.readouterr().err.split())
    assert "error: [Errno 28] No space left on device" in printed
    assert "Traceback" not in printed
    assert [row["preset"] for row in json.loads(out.read_text())["rows"]] == ["pole"]


def test_training_gone_astray_is_one_message(tmp_path, monkeypatch, capfd):
    config = dataclasses.replace(CONFIG, observer="none", constraint="multipliers")
    bad = presets.Preset(config, PPOHypers(beta=0.0, learning_rate=1e38))
    monkeypatch.setattr(presets, "PRESETS", {"pole": bad})
    assert run("--seeds", 2, "--out", tmp_path / "suite.json") == 1
    printed = " ".join(capfd.readouterr().err.split())
    assert "not finite" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("head", ["conv", "mlp"])
def test_images_are_trained_seed_by_seed_and_other_seeds_side_by_side(head, monkeypatch):
    """With a runner whose heads are what it was told: the seed's key, and how far it is."""
    asked = []

    class Trainer:
        def __init__(self, task):
            assert task.config.head == head

        def run(self, keys, hypers):
            asked.append(len(keys))
            for num_done in (50, 60):
                shown = np.zeros((len(keys), num_done - 50 or 50))
                heads = {"seed": jax.random.key_data(keys), "done": np.full(len(keys), num_done)}
                state = SimpleNamespace(params=SimpleNamespace(heads=heads))
                yield Chunk(num_done, 60, state, SimpleNamespace(pe_return=shown))

    checked = []
    monkeypatch.setattr(suite, "Trainer", Trainer)
    monkeypatch.setattr(suite.guards, "check", lambda *args: checked.append(args[2]))
    env = "Breakout-MinAtar" if head == "conv" else "Catch-bsuite"
    config = dataclasses.replace(CONFIG, env=env, env_param=(), head=head)
    keys, told = seed_keys(7, 3), []
    heads, speed = suite.train(make_task(config), keys, PPOHypers(min_return=0.0), told.append)
    np.testing.assert_array_equal(heads["seed"], jax.random.key_data(keys))
    np.testing.assert_array_equal(heads["done"], [60, 60, 60])
    assert speed > 0
    if head == "conv":
        assert asked == [1, 1, 1]
        assert checked == [0, 50] * 3
        assert told == [f"{done}/60, seed {seed}/3" for seed in (1, 2, 3) for done in (50, 60)]
    else:
        assert asked == [3]
        assert told == ["50/60, 3 seeds", "60/60, 3 seeds"]


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


@pytest.mark.parametrize(
    "content",
    [
        "seeds: 2\n",
        "[]",
        '{"summary": 1}',
        '{"rows": 3}',
        '{"rows": [{"name": "greedy"}]}',
        '{"rows": [{"preset": "pole", "env": "CartPole-v1"}]}',
        b"\xff",
    ],
)
def test_file_that_is_not_of_the_suite_is_left_alone(content, tmp_path, capfd):
    out = tmp_path / "table.json"
    content = content if isinstance(content, bytes) else content.encode()
    out.write_bytes(content)
    assert run("--out", out) == 2
    printed = " ".join(capfd.readouterr().err.split())
    assert "out must be a new file or one of ape-jax suite" in printed
    assert "Traceback" not in printed
    assert out.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]


def test_row_that_the_figure_cannot_be_drawn_from_is_found_before_training(written, capfd):
    content = json.loads(written.read_text())
    del content["rows"][0]["random_return"]
    written.write_text(json.dumps(content))
    assert run("--seeds", 2, "--out", written) == 2
    message = "out must be a new file or one of ape-jax suite"
    assert message in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize("others", ["--quick --seeds 2", "--seeds 3", "--seeds 2 --first-seed 0"])
def test_rows_of_other_seeds_and_another_effort_are_left_alone(others, written, monkeypatch, capfd):
    monkeypatch.setattr(suite, "run", row)
    before = written.read_bytes()
    assert run(*others.split(), "--out", written) == 2
    message = "out must hold rows of the same seeds and effort"
    assert message in " ".join(capfd.readouterr().err.split())
    assert written.read_bytes() == before


def test_row_of_a_preset_that_has_changed_is_not_kept_silently(written, monkeypatch, capfd):
    monkeypatch.setattr(suite, "run", row)
    changed = TINY["pole"]._replace(hypers=PPOHypers(min_return=6.0))
    monkeypatch.setattr(presets, "PRESETS", TINY | {"pole": changed})
    before = written.read_bytes()
    assert run("--seeds", 2, "--only", "swing", "--out", written) == 2
    assert "add pole to --only" in " ".join(capfd.readouterr().err.split())
    assert written.read_bytes() == before
    assert run("--seeds", 2, "--only", "swing,pole", "--out", written) == 0


def test_rows_of_presets_that_there_are_no_more_are_kept(written, monkeypatch):
    monkeypatch.setattr(suite, "run", row)
    monkeypatch.setattr(presets, "PRESETS", {"swing": TINY["swing"]})
    assert run("--seeds", 2, "--only", "swing,Pendulum-v1", "--out", written) == 0
    rows = json.loads(written.read_text())["rows"]
    assert [row["preset"] for row in rows] == ["swing", "pole"]


def test_interrupt_before_the_first_row_writes_nothing(tmp_path, monkeypatch):
    def measure(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(suite, "run", measure)
    assert run("--out", tmp_path / "suite.json") == cli.INTERRUPTED
    assert list(tmp_path.iterdir()) == []


def test_controls_differ_from_the_ensemble_in_what_they_are_named_after():
    hypers = PPOHypers(beta=2.0, min_return=5.0, temperature=0.3)
    same = {"config": CONFIG, "hypers": hypers}
    assert suite.variant("ensemble", **same) == (CONFIG, hypers)
    alone = dataclasses.replace(hypers, beta=0.0, min_return=None)
    assert suite.variant("beta0", **same) == (
        dataclasses.replace(CONFIG, observer="none"),
        alone,
    )
    assert suite.variant("single", **same) == (
        dataclasses.replace(CONFIG, num_experts=1, observer="uniform"),
        hypers,
    )


def test_control_of_the_policy_gradient_keeps_its_observer():
    """It cannot do without; at β = 0 nothing follows from it."""
    config = PGConfig(observer="posterior")
    ours, hypers = suite.variant("beta0", config, PPOHypers())
    assert (ours, hypers.beta) == (config, 0.0)


REAL = dict(presets.PRESETS)


@pytest.mark.parametrize("name", REAL)
def test_every_preset_and_its_controls_make_a_task(name):
    for which in suite.VARIANTS:
        config, _ = suite.variant(which, *REAL[name])
        assert make_task(config).networks.num_experts == config.num_experts


def test_steps_of_an_update_are_those_of_all_environments():
    """Four environments an expert, as many for the observer; twenty steps or segments of 8."""
    settings = dataclasses.replace(CONFIG, num_experts=3)
    alone = dataclasses.replace(settings, observer="none")
    whole = dataclasses.replace(settings, algorithm="pg", constraint="multipliers")
    counts = [steps_per_update(make_task(config)) for config in (settings, alone, whole)]
    assert counts == [2 * 3 * 4 * 8, 3 * 4 * 8, 2 * 3 * 4 * 20]
