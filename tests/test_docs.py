"""The pages in docs/ say what is so, nothing public is without words, and the site holds it all."""

import ast
import dataclasses
import importlib.util
import json
import pkgutil
import re
from pathlib import Path

import jax
import pytest
import yaml

from ape_jax import cli
from ape_jax.algorithms.task import make_task
from ape_jax.config import Hypers, PGConfig, RunConfig, TrainConfig
from ape_jax.evaluation import attackers
from ape_jax.reporting import tables
from ape_jax.runs import export

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
MODULES = sorted((ROOT / "ape_jax").rglob("*.py"))


def module_name(path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.fixture(scope="module")
def hooks():
    """What the site makes when it is built."""
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_programs(page, capsys) -> str:
    programs = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text("utf-8"), re.DOTALL)
    assert len(programs) == 1
    with jax.numpy_rank_promotion("allow"):
        exec(compile(programs[0], page, "exec"), {})
    return capsys.readouterr().out


def test_program_of_demonstrations_writes_a_file_that_loads(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert re.fullmatch(r"CartPole-v1 \(\d+, 4\) None\n", run_programs("demonstrations.md", capsys))


def test_observer_of_one_s_own_fits_and_does_better_than_counting(capsys):
    filtered, plain, _ = map(float, run_programs("observers.md", capsys).split())
    assert -100 <= plain < filtered < 0


def test_observer_of_one_s_own_takes_twenty_lines():
    page = (DOCS / "observers.md").read_text("utf-8")
    defined = page.split("class GoodEpisodes")[1].split("\n\n\n")[0]
    assert len(defined.splitlines()) <= 20


def test_exported_policies_are_used_as_the_page_says(tmp_path, monkeypatch, capsys):
    config = PGConfig()
    task = make_task(config)
    heads = jax.vmap(task.networks.init)(jax.random.split(jax.random.key(0), 1)).heads
    (tmp_path / "exported").mkdir()
    export.export_run(tmp_path / "exported", RunConfig(config), task, heads)
    monkeypatch.chdir(tmp_path)
    assert run_programs("runs.md", capsys) == "{'log_probs': (3, 2, 5)}\n"


def test_no_page_holds_a_placeholder():
    for page in (DOCS.parent / "README.md", *DOCS.glob("*.md")):
        assert not re.search(r"\b[A-Z]{10,}\b", page.read_text("utf-8")), page


def names(statement) -> list[str]:
    """What a statement defines, if anybody is to see it."""
    if isinstance(statement, ast.Assign):
        found = [target.id for target in statement.targets if isinstance(target, ast.Name)]
    elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        found = [statement.target.id]
    else:
        found = [getattr(statement, "name", "_")]
    return [name for name in found if not name.startswith("_") and name != "log"]


def without_words(tree, place, is_class=False):
    """Public classes, functions, methods, constants and fields that have no docstring."""
    if not is_class and not ast.get_docstring(tree):
        yield place
    for statement, following in zip(tree.body, [*tree.body[1:], None], strict=True):
        for name in names(statement):
            if isinstance(statement, ast.ClassDef | ast.FunctionDef):
                if not ast.get_docstring(statement):
                    yield f"{place}.{name}"
                if isinstance(statement, ast.ClassDef):
                    yield from without_words(statement, f"{place}.{name}", is_class=True)
            elif not is_class or isinstance(statement, ast.AnnAssign):
                text = getattr(getattr(following, "value", None), "value", None)
                if not (isinstance(following, ast.Expr) and isinstance(text, str)):
                    yield f"{place}.{name}"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_whatever_is_public_has_a_docstring(path):
    assert list(without_words(ast.parse(path.read_text("utf-8")), module_name(path))) == []


def test_what_has_no_docstring_is_found():
    source = '''
FIRST = 1
SECOND = 2
"""Told."""
class Told:
    """Told."""
    field: int
    other: int
    """Told."""
    def method(self): ...
    def _own(self): ...
def function(): ...
'''
    found = list(without_words(ast.parse(source), "m"))
    assert found == ["m", "m.FIRST", "m.Told.field", "m.Told.method", "m.function"]


def test_every_module_is_on_one_page_of_the_reference():
    pages = "".join(page.read_text("utf-8") for page in (DOCS / "api").glob("*.md"))
    shown = re.findall(r"^::: (\S+)$", pages, re.MULTILINE)
    hidden = {"ape_jax.commands.__init__"}
    assert sorted(shown) == sorted({module_name(path) for path in MODULES} - hidden)


def test_site_leads_to_every_page():
    def pages(nav):
        for entry in nav:
            for target in entry.values():
                yield from [target] if isinstance(target, str) else pages(target)

    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    listed = list(pages(yaml.safe_load(text)["nav"]))
    there = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    there |= {f"notebooks/{page.stem}.md" for page in (ROOT / "notebooks").glob("*.ipynb")}
    assert sorted(listed) == sorted(there | {"CHANGELOG.md", "benchmarks/README.md"})


@pytest.mark.parametrize("kind", [TrainConfig, Hypers, RunConfig])
def test_reference_of_settings_tells_every_one(kind, hooks):
    table = hooks.settings_table(kind).splitlines()[2:]
    told = [re.match(r"\| `(\w+)` \| `--([\w-]+)` \|", line).groups() for line in table]
    fields = [x.name for x in dataclasses.fields(kind) if x.name not in ("train", "hypers")]
    assert told == [(name, name.replace("_", "-")) for name in fields]
    assert all(line.count(" | ") == 4 and len(line.split(" | ")[4]) > 5 for line in table)


@dataclasses.dataclass
class Untold:
    told: int = 1
    """It is."""
    untold: int = 2


def test_setting_without_docstring_stops_the_build(hooks):
    with pytest.raises(ValueError, match=r"Untold\.untold has no docstring"):
        hooks.settings_table(Untold)


def test_reference_of_presets_gives_flags_that_make_them(hooks):
    """The recipe of the head and algorithm, and the flags in the table, are the preset."""
    for line in hooks.presets_table().splitlines()[2:]:
        name = re.match(r"\| `([\w-]+)`", line)[1]
        preset = hooks.presets.find(name)
        flags = " ".join(re.findall(r"`(--[^`]*)`", line)).split()
        if preset.hypers.min_return is not None:
            flags += ["--min-return", str(preset.hypers.min_return)]
        flags += ["--head", preset.train.head, "--algorithm", preset.train.algorithm]
        _, options = cli._parse(["train", *flags])
        assert (options.settings, options.hypers) == tuple(preset), name


def test_page_of_commands_shows_every_one_with_its_help(hooks):
    page = (DOCS / "commands.md").read_text("utf-8")
    assert sorted(re.findall(r"^## ([\w-]+)$", page, re.MULTILINE)) == sorted(cli._COMMANDS)
    shown = hooks.filled(page)
    for command in cli._COMMANDS:
        assert f"    usage: ape-jax {command} " in shown
    assert "<!-- make" not in shown


def test_links_out_of_the_pages_lead_to_the_same_files_on_the_site(hooks):
    page = "[a](../benchmarks/README.md#ppo) [b](runs.md) ![c](../benchmarks/results/seeds.png)"
    moved = "[a](benchmarks/README.md#ppo) [b](runs.md) ![c](benchmarks/results/seeds.png)"
    assert hooks.site_links(page, "page.md") == moved
    book = "[a](../docs/observers.md#the-floor) [b](01_quickstart.ipynb) [c](https://a.b/c)"
    moved = "[a](../observers.md#the-floor) [b](01_quickstart.md) [c](https://a.b/c)"
    assert hooks.site_links(book, "notebooks/02_the_mathematics.md") == moved
    page = "[tests](../tests/test_docs.py), [nothing](../tests/nothing.py)"
    assert hooks.site_links(page, "page.md") == "tests, [nothing](../tests/nothing.py)"


def test_page_of_observers_lists_every_one_and_its_file():
    page = (DOCS / "observers.md").read_text("utf-8")
    rows = re.findall(r"^\| \[`(\w+)`\].* `observers/(\w+)\.py` \|$", page, re.MULTILINE)
    assert {name for name, _ in rows} == {*attackers.ATTACKERS, *attackers.CONTINUOUS}
    shared = {"__init__", "fitting", "policies"}
    files = {path.stem for path in (ROOT / "ape_jax" / "observers").glob("*.py")}
    assert {file for _, file in rows} == files - shared
    for name, _ in rows:
        assert f"**`{name}`**" in page


def test_map_of_the_paper_names_what_exists():
    """Functions by the links to them, which ``test_readme`` follows; tests by their files."""
    page = (DOCS / "paper.md").read_text("utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 8
    for _, here, tested in rows:
        for shown, name in re.findall(r"\[`([\w.]+)[^`]*`\]\(\S+#(ape_jax\.\S+)\)", here):
            pkgutil.resolve_name(name)
            assert name.endswith(f".{shown.rsplit('.', 1)[-1]}")
        assert "](" in here
        files = re.findall(r"`(tests/[\w/]+\.py)`", tested)
        assert files
        assert [file for file in files if not (ROOT / file).exists()] == []
    for name in re.findall(r"`(core\.[\w.]+)", page):
        pkgutil.resolve_name(f"ape_jax.{name}")


RESULTS = ROOT / "benchmarks" / "results"
HEADS = {"tabular": "table", "mlp": "MLP"}


def rows_of(name):
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))["rows"]


def short(number):
    """To three digits, or whole."""
    if number is None:
        return "–"
    return f"{number:,.0f}" if number >= 100 else f"{number:#.3g}"


def millions(rate):
    return f"{rate / 1e6:.1f} M"


def performance_tables():
    """Of the page of performance: header and lines, from what the benchmarks wrote."""
    yield (
        [
            *("head", "experts", "environments an expert", "updates a second"),
            *("times PyTorch, eager", "times PyTorch, compiled", "environment steps a second"),
        ],
        [
            [
                *(HEADS[row["head"]], str(row["num_experts"]), f"{row['envs_per_expert']:,}"),
                *(short(row["ours_updates_per_second"]), short(row["ratio_eager"])),
                *(short(row["ratio_compiled"]), millions(row["steps_per_second"])),
            ]
            for row in rows_of("throughput")
            if row["num_experts"] == 2
        ],
    )
    yield (
        ["seeds", "updates a second, all seeds together"],
        [[str(row["seeds"]), f"{row['updates_per_second']:,.0f}"] for row in rows_of("seeds")],
    )
    yield (
        ["how `update_from_samples` is called", "updates a second", "times the original listing"],
        [
            [
                *(row["way"].replace("_", " "), f"{row['ours_updates_per_second']:,.0f}"),
                short(row["ratio"]),
            ]
            for row in rows_of("listing")
        ],
    )
    yield (
        ["environments", "steps a second", "plain PPO", "ours / plain"],
        [
            [
                *(str(row["num_envs"]), f"{row['ours_steps_per_second']:,.0f}"),
                *(f"{row['plain_steps_per_second']:,.0f}", f"{row['ratio']:.2f}"),
            ]
            for row in rows_of("ppo")
        ],
    )
    yield (
        ["compiled programs", "seconds to the first update", "of which importing", "compiling"],
        [
            [{"cold": "none kept", "warm": "kept"}[row["cache"]]]
            + [
                f"{row[key]:.1f}"
                for key in ("first_update_seconds", "import_seconds", "compile_seconds")
            ]
            for row in rows_of("startup")
        ],
    )
    yield (
        ["checkpoints", "seconds for 3,000 updates", "more than metrics alone"],
        [
            [row["saving"], f"{row['seconds']:.2f}", f"{row['share']:.1%}".replace("%", " %")]
            for row in rows_of("saving")
        ],
    )


def test_tables_of_performance_are_those_of_the_benchmarks():
    page = (DOCS / "performance.md").read_text("utf-8")
    expected = [tables.markdown_table(*table).rstrip() for table in performance_tables()]
    assert re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE) == [f"{x}\n" for x in expected]


def test_readme_holds_the_rows_of_speed_that_have_every_contestant():
    header, lines = next(performance_tables())
    complete = [line for line in lines if "–" not in line]
    assert len(complete) == 4
    readme = (DOCS.parent / "README.md").read_text("utf-8")
    assert tables.markdown_table(header, complete).rstrip() in readme
