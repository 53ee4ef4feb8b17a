"""The README says what is so: its programs run, and its table is the one in the repository."""

import json
import pkgutil
import re
from pathlib import Path

import pytest

from ape_jax import presets
from ape_jax.config import RunConfig
from ape_jax.evaluation import records
from ape_jax.evaluation.reproduce import Table1
from ape_jax.evaluation.suite_records import Suite
from ape_jax.reporting import tables

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
    recorded = records.read(Table1, README.parent / "docs" / "results" / "table1.json")
    table = tables.markdown_table(*tables.table1_cells(recorded))
    assert table in README.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "names", "seeds", "first_seed"),
    [("suite.json", tuple(presets.PRESETS), 5, 1000), ("catch.json", ("catch",), 10, 2000)],
)
def test_page_of_results_holds_the_recorded_table(file, names, seeds, first_seed):
    recorded = records.read(Suite, README.parent / "benchmarks" / "results" / file)
    table = tables.markdown_table(tables.SUITE_HEADER, tables.suite_lines(recorded))
    assert table in (README.parent / "docs" / "results.md").read_text(encoding="utf-8")
    assert all(row.effort.num_steps >= 256_000 for row in recorded.rows)
    # Of every preset as it is, on seeds that none was tuned on.
    configs = {
        name: RunConfig(*presets.PRESETS[name], seeds, first_seed).to_flat() for name in names
    }
    assert {row.preset: row.config for row in recorded.rows} == configs


PAGES = [
    *(README, README.parent / "CHANGELOG.md", README.parent / "benchmarks" / "README.md"),
    *sorted((README.parent / "docs").rglob("*.md")),
    *sorted((README.parent / "notebooks").glob("*.ipynb")),
]


def text_of(page) -> str:
    """What a page says, without its programs."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        said = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        text = "\n\n".join(said)
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(page) -> set[str]:
    """Of the headings, as they are made on the web: lower case, hyphens, no punctuation."""
    headings = re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def is_documented(name, page) -> bool:
    """Whether the page is the reference of the module that defines it."""
    pkgutil.resolve_name(name)
    modules = re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return name in modules or name.rpartition(".")[0] in modules


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(README.parent)))
def test_links_of_a_page_lead_somewhere(page):
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)", text_of(page)):
        path, _, anchor = link.partition("#")
        there = page.parent / path if path else page
        if re.match(r"https?:", link):
            continue
        if not there.exists():
            dead.append(link)
        elif anchor.startswith("ape_jax"):
            if not is_documented(anchor, there):
                dead.append(link)
        elif anchor and anchor not in anchors(there):
            dead.append(link)
    assert dead == []
