"""Tables of numbers in the pages are those of the files that commands and benchmarks wrote."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from ape_jax import presets
from ape_jax.evaluation import records
from ape_jax.evaluation.audit_records import Audit
from ape_jax.evaluation.suite_records import Suite
from ape_jax.reporting import audit_table, suite_tables, tables

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results"


def rows_of(name: str) -> list[dict]:
    file, _, part = name.partition(" ")
    return json.loads((RESULTS / f"{file}.json").read_text("utf-8"))[part or "rows"]


def digits(number: float | None) -> str:
    """Three digits, or all digits of a large number."""
    if number is None:
        return "–"
    return f"{number:,.0f}" if number >= 100 else f"{number:#.3g}"


def whole(key: str):
    return lambda row: f"{row[key]:,.0f}"


PERFORMANCE = {
    "throughput": {
        "head": lambda row: {"tabular": "table", "mlp": "MLP"}[row["head"]],
        "experts": whole("num_experts"),
        "environments an expert": whole("envs_per_expert"),
        "updates a second": lambda row: digits(row["ours_updates_per_second"]),
        "times PyTorch, eager": lambda row: digits(row["ratio_eager"]),
        "times PyTorch, compiled": lambda row: digits(row["ratio_compiled"]),
        "environment steps a second": lambda row: f"{row['steps_per_second'] / 1e6:.1f} M",
        "live steps a second": lambda row: f"{row['live_steps_per_second'] / 1e6:.1f} M",
    },
    "seeds": {
        "seeds": whole("seeds"),
        "updates a second, all seeds together": whole("updates_per_second"),
    },
    "listing": {
        "how `update_from_samples` is called": lambda row: row["way"].replace("_", " "),
        "updates a second": whole("ours_updates_per_second"),
        "times the original listing": lambda row: digits(row["ratio"]),
    },
    "ppo": {
        "environments": whole("num_envs"),
        "steps a second": whole("ours_steps_per_second"),
        "plain PPO": whole("plain_steps_per_second"),
        "ours / plain": lambda row: f"{row['ratio']:.2f}",
    },
    "accelerators": {
        "program": lambda row: f"`{row['program']}`",
        "compiled for": lambda row: row["target"],
        "kernels": whole("kernels"),
        "million cycles": lambda row: digits(row["cycles"] and row["cycles"] / 1e6),
        "megabytes": lambda row: digits(row["bytes"] / 1e6),
        "updates a second, estimated": lambda row: digits(row["updates_per_second_estimate"]),
    },
    "precision": {
        "platform": lambda row: row["platform"].upper(),
        "factors are rounded to": lambda row: row["precision"],
        "largest error": lambda row: f"{row['largest_error']:.1g}",
        "without full precision": lambda row: digits(row["largest_error_at_default_precision"]),
    },
    "startup programs": {
        "program": lambda row: f"`{row['program']}`",
        "seconds": lambda row: f"{row['seconds']:.2f}",
    },
    "startup": {
        "compiled programs": lambda row: {"cold": "none kept", "warm": "kept"}[row["cache"]],
        "seconds to the first update": lambda row: f"{row['first_update_seconds']:.1f}",
        "of which importing": lambda row: f"{row['import_seconds']:.1f}",
        "compiling": lambda row: f"{row['compile_seconds']:.1f}",
    },
    "saving": {
        "checkpoints": lambda row: row["saving"],
        "seconds for 3,000 updates": lambda row: f"{row['seconds']:.2f}",
        "more than metrics alone": lambda row: f"{100 * row['share']:.1f} %",
    },
}
"""Columns of each table on the page of performance, by the file of results that it shows and, where
that has several, the part."""


def on_the_page(row: dict) -> bool:
    """Two experts, and of the targets without a device one of each kind."""
    return (
        row.get("num_experts", 2) == 2
        and row.get("target", "h100") in ("h100", "v5e")
        and not row.get("program", "").endswith("-e8")
    )


def performance_table(name: str, keep=lambda row: True) -> str:
    columns = PERFORMANCE[name]
    lines = [[cell(row) for cell in columns.values()] for row in rows_of(name) if keep(row)]
    return tables.markdown_table(list(columns), lines).rstrip() + "\n"


def test_tables_of_performance_are_those_of_the_benchmarks():
    page = (DOCS / "performance.md").read_text("utf-8")
    found = re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)
    assert [x for x in found if not x.startswith("| part |")] == [
        performance_table(name, on_the_page) for name in PERFORMANCE
    ]


def test_readme_holds_the_rows_of_speed_that_have_every_contestant():
    table = performance_table("throughput", lambda row: row["ratio_compiled"] is not None)
    assert len(table.splitlines()) == 2 + 4
    assert table in (ROOT / "README.md").read_text("utf-8")


AGAINST_TORCH = {"throughput", "listing"}
"""Files of results with a ratio to PyTorch."""
SHOWN = {
    "README.md": {"throughput"},
    "docs/performance.md": {name.split()[0] for name in PERFORMANCE},
    "benchmarks/README.md": {
        name
        for page in [(ROOT / "benchmarks" / "README.md").read_text("utf-8")]
        for name in re.findall(r"\]\(results/(\w+)\.json\)", page)
    },
}
"""Files of results whose numbers a page shows."""


def measured_with(result: dict) -> str:
    """The libraries of a result; one that no device ran has no device."""
    return result.get("device") or "; ".join(f"{k} {v}" for k, v in result["versions"].items())


def versions_in(text: str, library: str) -> set[str]:
    """The versions of a library that a text names, without what follows a plus sign."""
    return set(re.findall(rf"\b{library} (\d+(?:\.\d+)+)", text))


@pytest.mark.parametrize("page", SHOWN)
@pytest.mark.parametrize("library", ["jax", "torch"])
def test_page_names_the_versions_that_its_numbers_were_measured_with(page, library):
    shown = SHOWN[page] if library == "jax" else SHOWN[page] & AGAINST_TORCH
    assert shown
    measured = [json.loads((RESULTS / f"{name}.json").read_text("utf-8")) for name in shown]
    recorded = [versions_in(measured_with(result), library) for result in measured]
    assert all(len(versions) == 1 for versions in recorded)
    assert versions_in((ROOT / page).read_text("utf-8"), library) == set.union(*recorded)


def test_versions_are_read_from_a_page_and_from_a_line_of_results():
    line = "AMD EPYC, 2 cores; jax 0.10.2; jaxlib 0.10.3; torch 2.13.0+cpu; Python 3.11.7"
    assert versions_in(line, "jax") == {"0.10.2"}
    assert versions_in(line, "torch") == {"2.13.0"}
    assert versions_in("(jax 0.10.2, torch 2.15.0)", "torch") == {"2.15.0"}
    assert versions_in("with PyTorch 2 and torch", "torch") == set()


def test_rows_against_torch_name_its_version():
    result = json.loads((RESULTS / "throughput.json").read_text("utf-8"))
    (version,) = versions_in(result["device"], "torch")
    assert {row["torch_version"].split("+")[0] for row in result["rows"]} == {version}
    for row in result["rows"]:
        assert row["live_steps_per_second"] <= row["steps_per_second"]


@pytest.mark.parametrize(("file", "first_seed"), [("suite.json", 1000), ("suite-3000.json", 3000)])
def test_page_of_results_holds_the_recorded_tables(file, first_seed):
    """Results of presets as they are now, on seeds that they were not tuned on."""
    suite = records.read(Suite, RESULTS / file)
    page = (DOCS / "results.md").read_text("utf-8")
    for header, lines in (
        (suite_tables.THREATS_HEADER, suite_tables.threat_lines(suite)),
        (suite_tables.SUITE_HEADER, suite_tables.suite_lines(suite)),
        (suite_tables.CONTROL_HEADER, suite_tables.control_lines(suite)),
    ):
        assert tables.markdown_table(header, lines) in page
    assert all(row.effort.num_steps >= 256_000 for row in suite.rows)
    for row in suite.rows:
        config = dataclasses.replace(presets.config(row.preset), seeds=5, first_seed=first_seed)
        assert row.config == config.to_flat()


def test_page_of_results_names_the_presets_that_were_not_attacked():
    rows = records.read(Suite, RESULTS / "suite.json").rows
    page = (DOCS / "results.md").read_text("utf-8")
    (named,) = re.findall(r"The other presets \((.*?)\)", page, re.DOTALL)
    absent = presets.PRESETS.keys() - {row.preset for row in rows}
    assert set(re.findall(r"`([\w-]+)`", named)) == absent


def test_readme_and_page_of_observers_hold_the_recorded_threats():
    audit = records.read(Audit, RESULTS / "audit.json")
    assert audit.complete
    assert audit.seeds == 10
    table = tables.markdown_table(*audit_table.threat_matrix(audit))
    for page in (ROOT / "README.md", DOCS / "observers.md"):
        assert table in page.read_text("utf-8")
    assert (DOCS / "results" / "audit.md").read_text("utf-8") == audit_table.markdown(audit)
