"""The report says what the numbers say, in every case, and is one file that needs no other."""

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser

import pytest
import report_sources
from command_line import run

from ape_jax.config import PGConfig, PGHypers, RunConfig, recipe
from ape_jax.evaluation import records
from ape_jax.evaluation.intervals import Interval
from ape_jax.reporting import findings, html

CONFIG = RunConfig(seeds=2, first_seed=3)


def find(config=CONFIG, audit=None, **changes):
    """Claims and details in one text."""
    summary = report_sources.summary(config.seeds, **changes)
    return "\n".join(f"{one.claim} {one.detail}" for one in findings.find(config, summary, audit))


def test_findings_name_every_clone_with_its_share():
    threats, best, *rest = findings.find(CONFIG, report_sources.summary(), report_sources.audit())
    assert "not protected under pooled, sequences" in threats.claim
    assert "online: latent (best) gets 104%" in threats.detail
    assert "latent (best)" in best.claim
    assert "104% [100%, 108%]" in best.claim
    assert "limited" in best.detail  # It was not tried.
    text = " ".join(one.claim for one in rest)
    for words in ("(sampled) gets 100% [96%", "(greedy) gets 9% [5%", "-10.00 [-22.71", "-10.50"):
        assert words in text


def test_protection_is_told_by_the_whole_interval():
    found = findings.verdicts(report_sources.audit())
    assert [[findings.name_of(row) for row in rows] for rows in found.values()] == [
        ["behaviour cloning (greedy)", "dagger (greedy)"],
        ["latent (best)", "behaviour cloning (sampled)"],
        ["recurrent (sampled)"],  # Its interval is [48, 56] %.
    ]


def test_nothing_is_said_about_protection_without_a_scale_or_without_a_cloner():
    unknown = tuple(dataclasses.replace(row, fraction=None) for row in report_sources.audit().rows)
    yardstick = report_sources.audit(shares={("mixture", "sampled"): 0.0})
    for audit in (report_sources.audit(rows=unknown), yardstick):
        assert not findings.verdicts(audit)
        assert "Nothing can be said" in find(audit=audit)


def test_an_ensemble_that_chance_may_have_made_better_than_random_has_no_shares():
    summary = report_sources.summary(random_std=85.0)
    assert "%" not in find(random_std=85.0)
    page = html.render(report_sources.sources(summary=summary, sweep=None, panels=None))
    assert 'class="verdicts"' not in page
    cells = html.threats(report_sources.audit())
    assert cells
    for line in cells:
        assert line[6]
        assert line[6] not in page


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_intervals_and_warnings_follow_the_number_of_seeds(seeds):
    text = find(RunConfig(seeds=seeds), audit=report_sources.audit(seeds=seeds))
    assert ("[" in text) == (seeds > 1)
    assert ("only 2 seeds" in text) == (seeds == 2)
    assert ("one seed" in text) == (seeds == 1)
    assert "first" not in text
    more = find(RunConfig(seeds=seeds + 1), audit=report_sources.audit(seeds=seeds))
    assert f"first {seeds} of {seeds + 1} seeds" in more


def test_collapsed_experts_are_named_by_seed():
    dead = ((False, True), (True, False))
    assert "expert 2 of seed 3, expert 1 of seed 4" in find(dead_experts=dead)


@pytest.mark.parametrize(("greedy", "failing"), [(0.9, 0), ((0.9, 0.1), 2)])
def test_greedy_experts_are_told_beside_their_greedy_clone(greedy, failing):
    text = find(greedy=greedy, audit=report_sources.audit())
    assert f"{failing} of 4 experts" in text
    assert ("the ensemble is its trap" in text) == (failing == 0)


def test_floor_below_a_random_policy_promises_nothing():
    low = report_sources.defence(floor=Interval.over_seeds([-170.0, -180.0]))
    assert "promises nothing" in find(audit=report_sources.audit(defences=(low,)))
    assert "promises nothing" not in find(audit=report_sources.audit())


def test_constraint_is_counted_without_tolerance():
    """The experts return −9.5 and −10.5, one more and one less in the two seeds."""
    for min_return, kept in ((-20.0, 4), (-10.0, 2), (-1.5, 0)):
        config = dataclasses.replace(CONFIG, hypers=PGHypers(min_return=min_return))
        assert f"{kept} of 4 experts, over all seeds, keep" in find(config)


class Page(HTMLParser):
    """Collects the text and elements of a page, and everything that a browser would load."""

    def __init__(self, text):
        super().__init__()
        self.loaded, self.text, self.ids, self.tags = [], "", [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "srcset", "data") or (name == "href" and tag != "a"):
                self.loaded.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_data(self, data):
        self.text += data


def test_page_has_every_section_and_loads_nothing_from_elsewhere():
    page = html.render(report_sources.sources())
    read = Page(page)
    assert read.tags.count("h2") == 6
    assert read.tags.count("figure") == 6
    assert all(value.startswith("data:") for value in read.loaded)
    assert not re.search(r"@import|url\(", page)
    assert len(read.ids) == len(set(read.ids))
    assert page == html.render(report_sources.sources())


def test_page_leaves_out_what_there_is_not_and_tells_of_what_is_missing():
    config = RunConfig(*recipe("gaussian", algorithm="ppo"), seeds=2)
    sources = report_sources.sources(config=config, audit=None, sweep=None, panels=None)
    read = Page(html.render(sources))
    assert read.tags.count("figure") == 1
    assert not {"audit-table", "grid"} & set(read.ids)
    audit = report_sources.audit(complete=False)
    assert "was interrupted" in html.render(sources._replace(audit=audit))


def test_everything_is_escaped():
    nasty = "<b>x</b>\"'&<script>alert(1)</script> {{ 7*7 }}"
    row = dataclasses.replace(report_sources.row("latent", "best", 1.0), sees=nasty)
    defence = report_sources.defence(label=nasty)
    audit = report_sources.audit(skipped={nasty: nasty}, rows=(row,), defences=(defence,))
    config = RunConfig(PGConfig(env=nasty, env_param=(nasty,)), seeds=2)
    facts = {nasty: nasty}
    changes = {"name": nasty, "audit": audit, "panels": None, "facts": facts, "commands": facts}
    read = Page(html.render(report_sources.sources(config=config, **changes)))
    assert "b" not in read.tags
    assert read.tags.count("script") == 1
    assert read.text.count(nasty) > 8


def test_table_has_the_strongest_first_and_unknown_shares_without_a_value():
    rows = report_sources.audit().rows
    unknown = dataclasses.replace(rows[0], fraction=None)
    table = html.table(report_sources.audit(rows=(*rows[1:], unknown)))
    means = [cells[4].value for cells in table]
    assert means == sorted(means, reverse=True)
    assert [cells[5].value for cells in table].count(None) == 1


@pytest.fixture
def own(small_run, tmp_path):
    """A copy of the run, whose name is one to escape."""
    return shutil.copytree(small_run, tmp_path / "<b>x")


def test_command_writes_one_page(own, small_audit, tmp_path):
    out = tmp_path / "new" / "page.html"
    assert run("report", own, "--audit", small_audit, "--out", out) == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]
    assert not (own / "audit").exists()
    read = Page(out.read_text("utf-8"))
    assert "b" not in read.tags
    summary = json.loads((own / "summary.json").read_text())
    assert findings.number(summary["pe_return"]["mean"]) in read.text
    assert summary["fingerprint"] in read.text


def test_command_audits_where_that_was_not_done(own, small_audit, monkeypatch):
    codes, asked = [130, 0, 0], []

    def quick(options, console):
        asked.append(options)
        code = codes[len(asked) - 1]
        if code == 0:
            shutil.copytree(small_audit, options.out, dirs_exist_ok=True)
        return code

    monkeypatch.setattr("ape_jax.cli.audit.run", quick)
    monkeypatch.setattr(html, "render", lambda sources: sources.audit.env)
    assert run("report", own) == 130  # The audit is interrupted.
    assert not (own / "report.html").exists()
    assert run("report", own) == 0
    assert (own / "report.html").read_text() == "GridWorld-ape"
    assert run("report", own) == 0  # It is there now.
    assert len(asked) == 2
    assert (asked[0].run, asked[0].out, asked[0].settings.quick) == (own, own / "audit", True)
    change(own / "audit" / "audit.json", complete=False)
    assert run("report", own) == 0
    assert len(asked) == 3


def change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


CASES = {
    "no metrics": "run must be a directory that ape-jax train made",
    "cut metrics": "run must hold the metrics of all 4 updates",
    "no audit": "audit.json must be a readable file",
    "old summary": "summary.json must be a file of this version of ape_jax; later is unknown",
    "audit of another run": "audit must be of the run that is reported",
    "sweep elsewhere": "sweep must be of the run's env, GridWorld-ape",
    "no page": "out must end in .html",
    "in the way": "out must be a file that can be written",
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_gets_one_message_and_leaves_no_page(case, own, small_audit, tmp_path, capfd):
    other = shutil.copytree(small_audit, tmp_path / "audit")
    arguments = [own, "--audit", other]
    updates = own / "metrics.jsonl"
    match case:
        case "no metrics":
            updates.unlink()
        case "cut metrics":
            updates.write_text("".join(updates.read_text().splitlines(keepends=True)[:-1]))
        case "no audit":
            (other / "audit.json").unlink()
        case "old summary":
            change(own / "summary.json", later=3)
        case "audit of another run":
            change(other / "audit.json", fingerprint="0" * 64)
        case "sweep elsewhere":
            records.write(tmp_path / "sweep.json", report_sources.sweep(env="x"))
            arguments += ["--sweep", tmp_path]
        case "no page":
            arguments += ["--out", tmp_path / "page.txt"]
        case "in the way":
            arguments += ["--out", updates / "page.html"]
    capfd.readouterr()
    assert run("report", *arguments) == 2
    printed = " ".join(capfd.readouterr().err.split())
    assert CASES[case] in printed
    assert printed.count("error: ") == 1
    assert not list(tmp_path.rglob("*.html*"))
