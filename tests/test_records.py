"""Result records: what is written is read back equal, and what is not sound is refused."""

import dataclasses
import json
from pathlib import Path

import pytest
import report_sources

from ape_jax.evaluation import records
from ape_jax.evaluation.audit_records import Audit
from ape_jax.evaluation.intervals import MeanStd
from ape_jax.evaluation.reproduce import Table1
from ape_jax.evaluation.suite_records import Suite
from ape_jax.evaluation.summary import Summary
from ape_jax.evaluation.sweep import Sweep
from ape_jax.types import SettingError

ROOT = Path(__file__).parents[1]
RECORDED = {
    "docs/results/table1.json": Table1,
    "benchmarks/results/suite.json": Suite,
    "benchmarks/results/suite-3000.json": Suite,
}


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_file_is_read_and_written_back_equal(name, tmp_path):
    record = records.read(RECORDED[name], ROOT / name)
    records.write(tmp_path / "again.json", record)
    assert (tmp_path / "again.json").read_text() == (ROOT / name).read_text()


TRAP = report_sources.defence(
    "trap", trapped=(True, False), from_every_start=(True, True), settings="beta 0.3"
)
MADE = {
    Audit: report_sources.audit(defences=(report_sources.defence(), TRAP)),
    Sweep: report_sources.sweep(),
    Summary: report_sources.summary(multipliers=MeanStd.over_seeds([[1.0, 2.0], [3.0, 4.0]])),
}


@pytest.mark.parametrize("kind", MADE)
def test_record_is_read_back_equal(kind, tmp_path):
    records.write(tmp_path / "record.json", MADE[kind])
    assert records.read(kind, tmp_path / "record.json") == MADE[kind]


def test_audit_json_has_the_names_that_stay():
    content = records.to_json(MADE[Audit])
    assert " ".join(content) == (
        "env horizon fingerprint options complete seeds num_steps random_return optimal_return "
        "threats rows defences curves skipped wall_seconds"
    )
    assert " ".join(content["options"]) == (
        "observers threats defences seeds first_seed steps quick"
    )
    assert " ".join(content["threats"][0]) == (
        "defence threat attacker deployment clone_return fraction episodes_needed"
    )
    assert " ".join(content["curves"][0]) == (
        "defence threat num_steps episodes attacker deployment clone_return fraction"
    )
    assert " ".join(content["rows"][0]) == (
        "defence observer deployment sees clone_return gap fraction agreement log_likelihood"
    )
    assert " ".join(content["rows"][0]["gap"]) == "mean low high values"
    run, trap = content["defences"]
    assert " ".join(trap) == (
        "name label num_experts trapped from_every_start settings pe_return expert_returns "
        "worst_expert greedy_experts worst_greedy_expert price floor mixture_entropy "
        "posterior_entropy"
    )
    assert trap.keys() - run.keys() == {"trapped", "from_every_start", "settings"}
    assert run["price"] is None


BAD = {
    "rows[1].gap.mean must be of type float": lambda c: c["rows"][1]["gap"].update(mean="x"),
    "rows[0].sees is missing": lambda c: c["rows"][0].pop("sees"),
    "rows[0].seen is unknown": lambda c: c["rows"][0].update(seen=1),
    "seeds must be of type int": lambda c: c.update(seeds=True),
    "rows must be of type": lambda c: c.update(rows={}),
    "defences[0] must be a mapping": lambda c: c.update(defences=[3]),
}


@pytest.mark.parametrize("message", BAD)
def test_message_names_file_and_field(message, tmp_path):
    content = records.to_json(report_sources.audit())
    BAD[message](content)
    path = tmp_path / "audit.json"
    path.write_text(json.dumps(content))
    with pytest.raises(SettingError) as error:
        records.read(Audit, path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("text", [None, "{", "[]", b"\xff"])
def test_file_that_holds_something_else_is_refused(text, tmp_path):
    path = tmp_path / "sweep.json"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SettingError, match=r"sweep\.json must"):
        records.read(Sweep, path)


def test_records_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        report_sources.audit().env = "other"
