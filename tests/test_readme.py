"""The README agrees with the package: its programs run, and its table is the recorded one."""

import json
import re
from pathlib import Path

import jax
import pytest
import yaml

import ape_jax
from ape_jax.evaluation import reproduce
from ape_jax.reporting import tables

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("index", range(2))
def test_program_runs_and_prints(index, capsys):
    with jax.numpy_rank_promotion("allow"):
        exec(compile(PROGRAMS[index], f"README.md, program {index}", "exec"), {})
    assert capsys.readouterr().out


def test_set_up_is_two_commands_and_checks_run_the_second():
    commands = re.findall(r"^    (pip install .*)$", README, re.MULTILINE)
    assert commands == ["pip install . && ape-jax reproduce", 'pip install ".[test]" && pytest']
    assert commands[1] in (ROOT / ".ci" / "run").read_text("utf-8")


def test_table_is_the_recorded_result():
    content = json.loads((ROOT / "docs" / "results" / "table1.json").read_text("utf-8"))
    assert tables.markdown_table(*tables.table1_cells(content, reproduce.LABELS)) in README


def test_citation_names_the_version_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == ape_jax.__version__
    assert citation["license"] == "Apache-2.0"
