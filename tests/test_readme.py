"""The README agrees with the package: its programs run, and its table is the recorded one."""

import re
from pathlib import Path

import jax
import pytest
import yaml

import ape_jax
from ape_jax.evaluation import records
from ape_jax.evaluation.reproduce import Table1
from ape_jax.reporting import tables

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("index", range(2))
def test_program_runs_and_prints(index, capsys):
    program = PROGRAMS[index].replace("num_updates=200", "num_updates=2").replace("1000)", "10)")
    with jax.numpy_rank_promotion("allow"):
        exec(compile(program, f"README.md, program {index}", "exec"), {})
    assert capsys.readouterr().out


def test_set_up_is_two_commands_and_checks_run_the_second():
    commands = re.findall(r"^    (pip install .*)$", README, re.MULTILINE)
    assert commands == ["pip install . && ape-jax reproduce", 'pip install ".[test]" && pytest']
    assert commands[1] in (ROOT / ".ci" / "run").read_text("utf-8")


def test_table_is_the_recorded_result():
    recorded = records.read(Table1, ROOT / "docs" / "results" / "table1.json")
    assert tables.markdown_table(*tables.table1_cells(recorded)) in README


def test_version_is_that_of_the_citation_and_of_the_newest_changes():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["license"] == "Apache-2.0"
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    version, date = re.search(r"^## (\S+) \((.+)\)$", changes, re.MULTILINE).groups()
    assert version == citation["version"] == ape_jax.__version__
    assert date == str(citation["date-released"])
