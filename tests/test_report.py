"""The report says what the numbers say, in every case, and is one file that needs no other."""

import dataclasses
import errno
import json
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import report_sources
from command_line import run
from hypothesis import given, settings
from hypothesis import strategies as st

from ape_jax import cli, presets
from ape_jax.config import PGConfig, PGHypers, PPOConfig, PPOHypers, RunConfig, recipe
from ape_jax.evaluation.intervals import interval
from ape_jax.reporting import findings, html, inline_svg

CONFIG = RunConfig(seeds=2, first_seed=3)


def find(config=CONFIG, summary=None, audit=None):
    """Claims and details in one text."""
    summary = report_sources.summary(config.seeds) if summary is None else summary
    return "\n".join(f"{one.claim} {one.detail}" for one in findings.find(config, summary, audit))


def test_findings_name_the_observer_and_its_share():
    text = find(audit=report_sources.audit())
    assert "An observer who clones and samples recovers 100 % [96, 104] of the ensemble's" in text
    assert "An observer who clones and acts greedily recovers 9 % [5, 13] of the ensemble's" in text
    assert text.startswith("The strongest of four observers, latent (best), recovers 104 % [100, 1")
    assert "Not tried, and maybe stronger: limited." in text
    assert "The ensemble (PE) returns −10.00 [−11.00, −9.00] an episode." in text
    assert "A random policy returns −90.00, an optimal one −9.09." in text


def test_protection_is_told_by_the_whole_interval():
    audit = report_sources.audit()
    found = findings.verdicts(audit)
    named = [[findings.name_of(row) for row in rows] for rows in found]
    assert named == [
        ["behaviour cloning (greedy)", "dagger (greedy)"],
        ["latent (best)", "behaviour cloning (sampled)"],
        ["recurrent (sampled)"],  # [48, 56] %
    ]


def test_observer_that_was_tried_alone_is_not_taken_for_all():
    audit = report_sources.audit(shares={("dagger", "sampled"): 0.1})
    first = findings.find(CONFIG, report_sources.summary(), audit)[0]
    assert first.claim.startswith("The only observer that was tried, dagger (sampled), recovers 10")
    assert "Not tried, and maybe stronger: behaviour cloning, limited, latent, rec" in first.detail


def test_an_ensemble_that_chance_may_have_made_better_than_random_has_no_shares():
    summary = report_sources.summary(random_std=85.0)
    audit = report_sources.audit()
    assert not findings.learned(summary)
    text = find(summary=summary, audit=findings.without_shares(audit))
    assert "Nothing can be said about protection" in text
    assert "hardly more than a random policy" in text
    assert "recover" not in text
    page = Page(html.render(report_sources.sources(summary=summary)))
    assert "protected against" not in page.text


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (-0.20, "−20 % [−24, −16], less than a random policy"),
        (-0.01, "−1 % [−5, 3], no more than a random policy"),
        (1.50, "recovers 150 % [146, 154] of the ensemble's return, more than the ensemble itself"),
    ],
)
def test_shares_below_nothing_and_above_everything_are_put_into_words(share, words):
    audit = report_sources.audit(shares={("behaviour_cloning", "greedy"): share})
    assert words in find(audit=audit)


def test_nothing_is_said_about_protection_where_there_is_nothing_to_protect():
    summary = report_sources.summary(random_return=-10.0)
    audit = report_sources.audit(learned=False, random_return=-10.0)
    assert findings.verdicts(audit) is None
    text = find(summary=summary, audit=audit)
    assert "Nothing can be said about protection. In at least one seed no expert is clearly" in text
    assert "In at least one seed that is hardly more than a random policy returns." in text
    assert "An observer who clones and samples returns −10.00 [−13.20, −6.80]; of how much, no" in (
        text
    )
    assert "uniform mixture π_o, returns −89.50" in text
    assert "recover" not in text


def test_nothing_is_said_about_protection_where_only_yardsticks_were_measured():
    audit = report_sources.audit(shares={("mixture", "sampled"): 0.0})
    assert "Nothing can be said about protection. The audit holds no real cloner." in find(
        audit=audit
    )


def test_one_seed_has_no_interval():
    config = RunConfig(seeds=1)
    text = find(config, audit=report_sources.audit(seeds=1))
    assert "An observer who clones and acts greedily recovers 9 % of the ensemble's return." in text
    assert "over the whole interval" not in text
    assert "This is one seed." in text
    assert "[" not in text


def test_few_seeds_are_told_of_and_many_are_not():
    assert "These are only two seeds." in find(audit=report_sources.audit())
    config = RunConfig(seeds=5)
    assert "seeds. Bootstrap" not in find(config, audit=report_sources.audit(seeds=5))


def test_audit_of_some_of_the_seeds_is_told_of():
    text = find(RunConfig(seeds=6), audit=report_sources.audit(seeds=5))
    assert "The audit is of the first 5 of 6 seeds." in text


@pytest.mark.parametrize(
    ("dead", "claim"),
    [
        ([[False, False], [False, False]], "No expert is dead."),
        ([[False, True], [False, False]], "Expert 2 of seed 3 is dead: sacrificed in training."),
        (
            [[False, True], [True, True]],
            "Expert 2 of seed 3, experts 1 and 2 of seed 4 are dead: sacrificed in training.",
        ),
    ],
)
def test_dead_experts_are_named_by_seed(dead, claim):
    assert claim in find(summary=report_sources.summary(dead_experts=dead))


@pytest.mark.parametrize(
    ("greedy", "expected"),
    [
        (0.9, ["recover 90 %", "none of four experts", "the ensemble is its trap"]),
        ((0.9, 0.1), ["recover 50 %", "two of four experts", "may fail as they do"]),
        (-0.1, ["recover nothing of the ensemble's return: −10 %", "four of four experts"]),
    ],
)
def test_greedy_experts_are_told_beside_their_greedy_clone(greedy, expected):
    text = find(summary=report_sources.summary(greedy=greedy), audit=report_sources.audit())
    for words in expected:
        assert words in text
    assert ("is its trap" in text) == (greedy == 0.9)


def test_no_ensemble_traps_the_clone_of_one_expert():
    config = RunConfig(PGConfig(num_experts=1), seeds=2)
    summary = report_sources.summary()
    for name in ("expert_returns", "greedy_experts"):
        summary[name]["values"] = [line[:1] for line in summary[name]["values"]]
    assert "is its trap" not in find(config, summary, report_sources.audit())


def test_floor_is_given_in_words_or_said_to_promise_nothing():
    audit = report_sources.audit()
    text = find(audit=audit)
    assert "can be held below −10.50. This floor lies 0.50 below the ensemble" in text
    audit["defences"][0]["floor"] = interval([-170.0, -180.0])
    assert "can be held below −175.00. This floor is below what a random policy" in find(
        audit=audit
    )
    audit["defences"][0]["floor"] = None
    assert "This is theory" in find(audit=audit)


def test_continuous_actions_have_findings_without_an_audit():
    config = RunConfig(*recipe("gaussian", algorithm="ppo"), seeds=2)
    found = findings.find(config, report_sources.summary(), None)
    assert found[0].claim == "No observer's clone was measured."
    text = " ".join(one.claim for one in found)
    assert "The experts themselves, acting by their mean action, recover 90 %" in text
    assert "clones and samples" not in text


@pytest.mark.parametrize(
    ("min_return", "claim"),
    [
        (-20.0, "All four experts keep the return of at least −20 that was asked for."),
        (-10.0, "Two of four experts keep the return of at least −10 that was asked for."),
        (-1.5, "None of four experts keep the return of at least −1.5 that was asked for."),
    ],
)
def test_constraint_is_counted_without_tolerance(min_return, claim):
    config = dataclasses.replace(CONFIG, hypers=PGHypers(min_return=min_return))
    assert claim in find(config)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (RunConfig(), "Two experts, trained with PG-APE on GridWorld-ape for 3,000 updates against "
         "the uniform mixture π_o, β = 0.33; one seed."),
        (RunConfig(*presets.find("cartpole"), seeds=12), "at temperature 0.15, β = 2.5, each to "
         "keep a return of at least 450; 12 seeds."),
        (RunConfig(*presets.find("constrained")), "the uniform mixture π_o, each to keep a return "
         "of at least −12;"),
        (RunConfig(hypers=PGHypers(beta=0.0)), "without regard to an observer (β = 0);"),
        (RunConfig(PPOConfig(observer="none")), "without an observer;"),
        (RunConfig(PGConfig(env_param=("max_steps_in_episode=20",))), "on GridWorld-ape, "
         "max_steps_in_episode=20 for"),
    ],
)  # fmt: skip
def test_statement_says_what_was_trained(config, words):
    assert words in findings.statement(config)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (-12.846, "−12.85"),
        (-0.001, "0.00"),
        (0.0, "0.00"),
        (-100.0, "−100.00"),
        (1234.5, "1,234.5"),
    ],
)
def test_numbers_have_a_minus_sign_and_no_negative_zero(value, text):
    assert findings.number(value) == text


class Page(HTMLParser):
    """What a browser would load of a page, its text, and its elements."""

    def __init__(self, text):
        super().__init__()
        self.loaded, self.text, self.ids, self.tags = [], "", [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "srcset", "data") or (name in ("href", "xlink:href") and tag != "a"):
                self.loaded.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page():
    return html.render(report_sources.sources())


def test_page_loads_nothing_from_elsewhere(page):
    loaded = Page(page).loaded
    assert loaded
    assert all(value.startswith(("#", "data:")) for value in loaded)
    assert not re.search(r"@import|url\((?!#)", page)
    assert "http" not in page.replace("http-equiv", "")


def test_page_has_every_section_and_unique_ids(page):
    read = Page(page)
    for heading in ("Findings", "Learning curves", "Experts and clones on the grid", "Audit"):
        assert heading in read.text
    assert read.tags.count("figure") == 5
    assert len(read.ids) == len(set(read.ids))
    assert page == html.render(report_sources.sources())


def test_every_reference_inside_the_figures_is_there(page):
    ids = set(Page(page).ids)
    references = set(re.findall(r"url\(#([^)]+)\)", page))
    references |= {value[1:] for value in Page(page).loaded if value.startswith("#")}
    assert references
    assert references <= ids


def test_page_leaves_out_what_there_is_not():
    config = RunConfig(*recipe("gaussian", algorithm="ppo"), seeds=2)
    page = html.render(report_sources.sources(config=config, audit=None, sweep=None, policies=None))
    read = Page(page)
    assert read.tags.count("figure") == 1
    assert "the actions are continuous, which an audit cannot score" in read.text
    assert "on the grid" not in read.text.lower()
    assert "ape-jax sweep trains experts with discrete actions" in read.text
    assert "audit-table" not in read.ids


def test_page_names_the_command_of_a_sweep_that_is_not_there():
    commands = {"the sweep": "ape-jax sweep --out here"}
    page = html.render(report_sources.sources(sweep=None, policies=None, commands=commands))
    assert "ape-jax sweep --out here" in Page(page).text


def test_interrupted_audit_is_told_of():
    audit = report_sources.audit(complete=False)
    page = html.render(report_sources.sources(audit=audit, policies=None))
    assert "This audit was interrupted: rows are missing." in Page(page).text


def test_everything_is_escaped():
    nasty = "<b>x</b>\"'&<script>alert(1)</script> $x$ {{ 7*7 }}"
    audit = report_sources.audit(skipped={nasty: nasty})
    audit["defences"][0]["label"] = nasty
    audit["defences"].append(dict(audit["defences"][0], name="other", label=nasty))
    audit["rows"][0]["observer"] = audit["rows"][0]["sees"] = nasty
    config = RunConfig(PGConfig(env=nasty, env_param=(nasty,)), seeds=2)
    facts = {nasty: nasty}
    sources = report_sources.sources(
        name=nasty, config=config, audit=audit, policies=None, facts=facts, commands=facts
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.text.Text.get_parse_math", lambda self: False)
        page = html.render(sources)
    read = Page(page)
    assert "b" not in read.tags
    assert read.tags.count("script") == 1
    assert read.text.count(nasty) > 8


def test_table_sorts_the_strongest_first_and_tells_deployments_apart():
    table = html.table(report_sources.audit())
    assert [name for name, _ in table.header] == [
        *("observer", "deployed", "sees", "clone return", "share", "agreement")
    ]
    assert [is_number for _, is_number in table.header] == [False] * 3 + [True] * 3
    means = [cells[3].value for _, cells in table.rows]
    assert means == sorted(means, reverse=True)
    assert [deployment for deployment, _ in table.rows][:2] == ["best", "sampled"]
    assert table.rows[-1][1][4].text == "−5 % [−9, −1]"


def test_table_has_a_column_for_ensembles_where_there_are_several():
    audit = report_sources.audit(learned=False)
    audit["defences"].append(dict(audit["defences"][0], name="pg_ape", label="PG-APE"))
    audit["rows"].append(dict(audit["rows"][0], defence="pg_ape"))
    table = html.table(audit)
    assert table.header[0] == ("ensemble", False)
    assert {cells[0].text for _, cells in table.rows} == {"run", "PG-APE"}
    assert all(cells[5] == ("–", None) for _, cells in table.rows)


def test_settings_mark_what_differs_from_the_nearest_preset():
    train, hypers = presets.find("cartpole")
    config = RunConfig(dataclasses.replace(train, num_updates=60), hypers, 2)
    base, groups = html.settings(config)
    assert base == "the preset cartpole"
    changed = {line.name: line for lines in groups.values() for line in lines if line.usual}
    assert changed.keys() == {"num_updates", "seeds"}
    assert changed["num_updates"] == ("num_updates", "60", "300")
    names = [line.name for lines in groups.values() for line in lines]
    assert set(names) == set(config.to_flat())
    assert len(names) == len(set(names))


RUNS = [
    RunConfig(),
    RunConfig(seeds=3, first_seed=7, save_every=20),
    RunConfig(*recipe("mlp", min_return=-12.0)),
    RunConfig(*recipe("mlp", algorithm="ppo"), seeds=2),
    RunConfig(PGConfig(head="conv", env="Breakout-MinAtar", hidden_sizes=(8, 9))),
    RunConfig(PPOConfig(head="mlp", observer="none"), PPOHypers()),
    *(RunConfig(*presets.find(name), seeds=2) for name in presets.names()),
    RunConfig(
        dataclasses.replace(
            presets.find("pendulum").train,
            normalize_rewards=False,
            env_param=("g=9.0",),
            constraint="multipliers",
        ),
        PPOHypers(min_return=None, value_clip_eps=0.2),
    ),
]


@pytest.mark.parametrize("config", RUNS, ids=lambda config: config.train.env)
def test_command_of_a_run_gives_its_settings(config):
    command = shlex.split(html.train_command(config, "there"))
    assert command[:2] == ["ape-jax", "train"]
    _, options = cli._parse(command[1:])
    parsed = RunConfig(
        *(options.settings, options.hypers, options.seeds, options.first_seed, options.save_every)
    )
    assert parsed == config
    assert str(options.out) == "there"


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**24 - 1))
def test_colours_of_the_dark_page_can_be_seen(number):
    colour = inline_svg.on_dark(f"#{number:06x}")
    assert inline_svg.contrast(colour, inline_svg.DARK) >= inline_svg.LEAST_CONTRAST


def test_contrast_is_that_of_the_guidelines():
    assert inline_svg.contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert inline_svg.contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "<b>x"
    flags = ["--num-updates", "4", "--envs-per-expert", "4", "--seeds", "2", "--first-seed", "3"]
    assert run("train", *flags, "--out", out) == 0
    return out


@pytest.fixture(scope="module")
def audited(trained):
    """An audit of it, apart from its default place."""
    out = trained.parent / "audit"
    flags = ["--observers", "mixture,behaviour_cloning", "--steps", "2000", "--quick"]
    assert run("audit", trained, *flags, "--out", out) == 0
    return out


def test_command_writes_one_page_and_the_same_again(trained, audited, tmp_path, capfd):
    pages = []
    for name in ("one.html", "two.html"):
        out = tmp_path / "new" / name
        assert run("report", trained, "--audit", audited, "--out", out) == 0
        assert f"report: {out}" in capfd.readouterr().out.replace("\n", "")
        pages.append(out.read_text("utf-8").replace(name, ""))
    assert pages[0] == pages[1]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["one.html", "two.html"]
    assert not (trained / "audit").exists()
    read = Page(pages[0])
    assert "run <b>x" in " ".join(read.text.split())
    assert "b" not in read.tags
    summary = json.loads((trained / "summary.json").read_text())
    assert findings.number(summary["pe_return"]["mean"]) in read.text
    assert summary["fingerprint"] in read.text
    assert "audit.json" not in read.text
    flags = "--observers mixture,behaviour_cloning --steps 2000 --quick"
    assert flags in read.text


def test_command_audits_where_that_was_not_done(trained, audited, tmp_path, monkeypatch):
    from ape_jax.cli import audit

    own = tmp_path / "run"
    shutil.copytree(trained, own)
    asked = []

    def quick(options, console):
        asked.append(options)
        shutil.copytree(audited, options.out, dirs_exist_ok=True)
        return 0

    monkeypatch.setattr(audit, "run", quick)
    monkeypatch.setattr(report, "render", lambda sources: sources.audit["env"])
    assert run("report", own) == 0
    assert asked == [audit.AuditOptions(run=own, quick=True, out=own / "audit")]
    assert (own / "report.html").read_text() == "GridWorld-ape"
    assert run("report", own) == 0  # It is there now.
    assert len(asked) == 1
    content = json.loads((own / "audit" / "audit.json").read_text())
    (own / "audit" / "audit.json").write_text(json.dumps(content | {"complete": False}))
    assert run("report", own) == 0  # It had been interrupted.
    assert len(asked) == 2


def test_interrupted_audit_leaves_no_page(trained, tmp_path, monkeypatch):
    from ape_jax.cli import audit

    own = tmp_path / "run"
    shutil.copytree(trained, own)
    monkeypatch.setattr(audit, "run", lambda options, console: 130)
    assert run("report", own) == 130
    assert not (own / "report.html").exists()


def test_audit_says_which_parameters_it_is_of(trained, audited):
    content = json.loads((audited / "audit.json").read_text())
    summary = json.loads((trained / "summary.json").read_text())
    assert content["fingerprint"] == summary["fingerprint"]
    assert content["complete"]
    assert content["options"]["observers"] == "mixture,behaviour_cloning"


@pytest.mark.slow
def test_continuous_run_is_reported_without_an_audit(tmp_path):
    flags = ["--algorithm", "ppo", "--head", "gaussian", "--env", "Pendulum-v1"]
    flags += ["--env-param", "max_steps_in_episode=10", "--hidden-sizes", "4"]
    flags += ["--envs-per-expert", "2", "--rollout-length", "8", "--num-minibatches", "2"]
    flags += ["--num-updates", "2", "--num-epochs", "1"]
    assert run("train", *flags, "--out", tmp_path / "run") == 0
    assert run("report", tmp_path / "run") == 0
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "the actions are continuous" in page
    assert not (tmp_path / "run" / "audit").exists()


def spoil(path, **changes):
    """A copy of a JSON file's folder, with something else in it; names with None are dropped."""
    content = json.loads(path.read_text()) | changes
    kept = {name: value for name, value in content.items() if value is not None}
    return json.dumps(kept)


def _spoilt(case, trained, audited, folder):
    """The run and the other arguments of a case."""
    own = folder / "run"
    shutil.copytree(trained, own)
    other = folder / "other"
    shutil.copytree(audited, other)
    arguments = ["--audit", other]
    path = other / "audit.json"
    match case:
        case "no run":
            return [folder / "absent", *arguments]
        case "unfinished":
            shutil.rmtree(own / "checkpoints" / "final")
        case "not evaluated":
            (own / "summary.json").unlink()
        case "no metrics":
            (own / "metrics.jsonl").unlink()
        case "empty metrics":
            (own / "metrics.jsonl").write_text("")
        case "cut metrics":
            lines = (own / "metrics.jsonl").read_text().splitlines(keepends=True)
            (own / "metrics.jsonl").write_text("".join(lines[:-1]))
        case "old summary":
            (own / "summary.json").write_text(spoil(own / "summary.json", dead_experts=None))
        case "no audit":
            path.unlink()
        case "damaged audit":
            path.write_text("{")
        case "old audit":
            path.write_text(spoil(path, fingerprint=None))
        case "audit of other things":
            path.write_text(spoil(path, rows=[{}]))
        case "audit without numbers":
            rows = [row | {"clone_return": None} for row in json.loads(path.read_text())["rows"]]
            path.write_text(spoil(path, rows=rows))
        case "list":
            path.write_text("[]")
        case "audit of another run":
            path.write_text(spoil(path, fingerprint="0" * 64))
        case "stale audit":
            (own / "audit").mkdir()
            (own / "audit" / "audit.json").write_text(spoil(path, fingerprint="0" * 64))
            arguments = []
        case "audit of more seeds":
            path.write_text(spoil(path, seeds=3))
        case "no sweep":
            arguments += ["--sweep", folder]
        case "sweep elsewhere":
            (folder / "sweep.json").write_text(json.dumps(report_sources.sweep() | {"env": "x"}))
            arguments += ["--sweep", folder]
        case "sweep of more experts":
            (folder / "sweep.json").write_text(
                json.dumps(report_sources.sweep() | {"num_experts": 3})
            )
            arguments += ["--sweep", folder]
        case "sweep of other things":
            (folder / "sweep.json").write_text(json.dumps({"env": "x", "points": 3}))
            arguments += ["--sweep", folder]
        case "no page":
            return [own, *arguments, "--out", folder / "page.txt"]
        case "directory":
            (folder / "page.html").mkdir()
            return [own, *arguments, "--out", folder / "page.html"]
        case "in the way":  # Found before anything is computed: there is no audit yet.
            (folder / "file").write_text("")
            return [own, "--out", folder / "file" / "page.html"]
    return [own, *arguments]


BAD = {
    "no run": "run must be a directory that ape-jax train made",
    "unfinished": "run must be finished",
    "not evaluated": "run must be a directory that ape-jax train made, to its end",
    "no metrics": "run must be a directory that ape-jax train made",
    "empty metrics": "run must hold the metrics of all 4 updates",
    "cut metrics": "run must hold the metrics of all 4 updates",
    "old summary": "run must be of this version of ape_jax",
    "no audit": "audit must be a directory that ape-jax audit made",
    "damaged audit": "audit must hold files as they were written",
    "old audit": "audit must be of this version of ape_jax",
    "audit of other things": "audit must be of this version of ape_jax",
    "audit without numbers": "audit must be of this version of ape_jax",
    "list": "audit must be of this version of ape_jax",
    "audit of another run": "audit must be of the run that is reported",
    "stale audit": "audit must be of the run that is reported",
    "audit of more seeds": "audit must be of the run that is reported",
    "no sweep": "sweep must be a directory that ape-jax sweep made",
    "sweep elsewhere": "sweep must be of the run's env, GridWorld-ape",
    "sweep of more experts": "sweep must be of the run's num_experts, 2",
    "sweep of other things": "sweep must be of this version of ape_jax",
    "no page": "out must end in .html",
    "directory": "out must be a file; got the directory",
    "in the way": "out must be a file that can be written",
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_message_and_leaves_no_page(case, trained, audited, tmp_path, capfd):
    arguments = _spoilt(case, trained, audited, tmp_path)
    capfd.readouterr()
    assert run("report", *arguments) == 2
    printed = " ".join(capfd.readouterr().err.split())
    assert BAD[case] in printed
    assert printed.count("error: ") == 1
    assert "Traceback" not in printed
    assert not [path for path in tmp_path.rglob("*.html*") if path.is_file()]
    assert not (tmp_path / "run" / "audit" / "audit.md").exists()


def test_page_that_cannot_be_written_leaves_nothing(trained, audited, tmp_path, monkeypatch, capfd):
    def full(path, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    out = tmp_path / "page.html"
    assert run("report", trained, "--audit", audited, "--out", out) == 1
    assert "error: the page could not be written" in " ".join(capfd.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def test_audit_of_a_later_version_is_shown_with_what_was_asked(trained, audited, tmp_path):
    other = tmp_path / "audit"
    shutil.copytree(audited, other)
    options = json.loads((other / "audit.json").read_text())["options"] | {"later": 3}
    (other / "audit.json").write_text(spoil(other / "audit.json", options=options))
    assert run("report", trained, "--audit", other, "--out", tmp_path / "page.html") == 0
    assert "--later 3" in (tmp_path / "page.html").read_text("utf-8")


def test_grid_of_many_experts_is_drawn_in_lines():
    panels = {f"expert {index}": np.zeros((9, 5)) for index in range(7)}
    lines = list(html._rows(panels).values())
    assert [len(line) for line in lines] == [4, 3]
    assert [name for line in lines for name in line] == list(panels)
