"""The README says what is so: its programs run, and its table is the one in the repository."""

import json
import re
from pathlib import Path

import pytest

from ape_jax import reproduce, tables

README = Path(__file__).parents[1] / "README.md"
PROGRAMS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_readme_holds_the_programs_that_are_run_here():
    assert len(PROGRAMS) == 2


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(PROGRAMS)))
def test_readme_program_runs_and_prints(index, capsys):
    import jax

    with jax.numpy_rank_promotion("allow"):
        exec(compile(PROGRAMS[index], f"README.md, program {index}", "exec"), {})
    assert capsys.readouterr().out


def test_readme_opens_with_the_two_commands():
    commands = re.findall(
        r"^    (pip install .*)$", README.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert commands == ["pip install . && ape-jax reproduce", 'pip install ".[test]" && pytest']
    script = (README.parent / ".ci" / "run").read_text(encoding="utf-8")
    assert commands[1] in script


def test_readme_table_is_the_recorded_result():
    content = json.loads((README.parent / "docs" / "results" / "table1.json").read_text())
    table = tables.markdown_table(*tables.table1_cells(content, reproduce.LABELS))
    assert table in README.read_text(encoding="utf-8")


def test_page_of_results_holds_the_recorded_table():
    rows = json.loads((README.parent / "benchmarks" / "results" / "suite.json").read_text())["rows"]
    table = tables.markdown_table(tables.SUITE_HEADER, tables.suite_lines(rows))
    assert table in (README.parent / "docs" / "results.md").read_text(encoding="utf-8")
    assert all(row["first_seed"] >= 1000 for row in (row["config"] for row in rows))
    assert all(row["effort"]["num_steps"] >= 256_000 and row["seeds"] >= 5 for row in rows)


def test_readme_links_lead_somewhere():
    for page in (README, *(README.parent / "docs").glob("*.md")):
        links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
        local = [link for link in links if not link.startswith("http")]
        assert [link for link in local if not (page.parent / link).exists()] == []
