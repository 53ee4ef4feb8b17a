"""The pages in docs/ agree with the code: links, tables, names, programs, and the site's pages."""

import ast
import importlib.util
import json
import pkgutil
import re
from pathlib import Path

import jax
import pytest
import yaml

from ape_jax import cli, presets
from ape_jax.algorithms.task import make_task
from ape_jax.cli import train_options
from ape_jax.config import ALL_SETTINGS, PGConfig, RunConfig
from ape_jax.evaluation import attackers
from ape_jax.observers.threats import THREATS
from ape_jax.runs import export

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
MODULES = sorted((ROOT / "ape_jax").rglob("*.py"))
PAGES = [
    *ROOT.glob("*.md"),
    ROOT / "benchmarks" / "README.md",
    *sorted(DOCS.rglob("*.md")),
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text_of(path: Path) -> str:
    """The text of a page without its programs."""
    text = path.read_text("utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        parts = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        text = "\n\n".join(parts)
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


@pytest.fixture(scope="module")
def hooks():
    """The module that fills in pages when the site is built."""
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Links.


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as on the web: lower case, hyphens, no punctuation."""
    headings = re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def is_documented(name: str, page: Path) -> bool:
    """Whether a name exists, and a page of the reference shows the module that holds it."""
    pkgutil.resolve_name(name)
    shown = re.findall(r"^::: (\S+)$", page.read_text("utf-8"), re.MULTILINE)
    return any(f"{name}.".startswith(f"{module}.") for module in shown)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_of_a_page_lead_somewhere(page):
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)", text_of(page)):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists():
            dead.append(link)
        elif anchor.startswith("ape_jax"):
            if not is_documented(anchor, target):
                dead.append(link)
        elif anchor and anchor not in anchors(target):
            dead.append(link)
    assert dead == []


def test_site_leads_to_every_page():
    def pages(nav):
        for entry in nav:
            for target in entry.values():
                yield from [target] if isinstance(target, str) else pages(target)

    listed = list(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]))
    expected = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    expected |= {f"notebooks/{page.stem}.md" for page in (ROOT / "notebooks").glob("*.ipynb")}
    assert sorted(listed) == sorted(expected | {"CHANGELOG.md", "benchmarks/README.md"})


def test_links_out_of_docs_lead_to_the_same_files_on_the_site(hooks):
    page = "[a](../benchmarks/README.md#ppo) [b](runs.md) ![c](../benchmarks/results/seeds.png)"
    moved = "[a](benchmarks/README.md#ppo) [b](runs.md) ![c](benchmarks/results/seeds.png)"
    assert hooks.site_links(page, "page.md") == moved
    notebook = "[a](../docs/observers.md#the-floor) [b](01_quickstart.ipynb) [c](https://a.b/c)"
    moved = "[a](../observers.md#the-floor) [b](01_quickstart.md) [c](https://a.b/c)"
    assert hooks.site_links(notebook, "notebooks/02_the_mathematics.md") == moved
    page = "[tests](../tests/test_docs.py), [nothing](../tests/nothing.py)"
    assert hooks.site_links(page, "page.md") == "tests, [nothing](../tests/nothing.py)"


# Programs in pages.


def run_program(page: str, capsys) -> str:
    """The output of a page's only program."""
    (program,) = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text("utf-8"), re.DOTALL)
    program = program.replace("num_updates=200", "num_updates=2")
    with jax.numpy_rank_promotion("allow"):
        exec(compile(program, page, "exec"), {})
    return capsys.readouterr().out


@pytest.mark.slow
def test_program_of_the_start_page_runs(capsys):
    assert "sampled" in run_program("index.md", capsys)


def test_program_of_demonstrations_writes_a_file_that_loads(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert re.fullmatch(r"CartPole-v1 \(\d+, 4\) None\n", run_program("demonstrations.md", capsys))


def test_observer_of_your_own_does_better_than_counting(capsys):
    filtered, plain, _ = map(float, run_program("observers.md", capsys).split())
    assert -100 <= plain < filtered < 0


def test_program_of_runs_reads_exported_policies(tmp_path, monkeypatch, capsys):
    config = PGConfig()
    task = make_task(config)
    heads = jax.vmap(task.networks.init)(jax.random.split(jax.random.key(0), 1)).heads
    (tmp_path / "exported").mkdir()
    export.export_run(tmp_path / "exported", RunConfig(config), task, heads)
    monkeypatch.chdir(tmp_path)
    assert run_program("runs.md", capsys) == "{'log_probs': (3, 2, 5)}\n"


# The reference of the code.

SHAPE = re.compile(r"\w+\[(?:np\.ndarray|Array)( \| (np\.ndarray|Array))?, '[^']*'\]")
"""An array whose type names its axes."""


def unexplained_fields(owner: ast.ClassDef) -> list[str]:
    """Public fields that need a docstring and have none.

    A docstring is needed where the jaxtyping annotation of an array does not name its axes, and
    where a field may be None and nothing in the class says when. A flag has a help text instead.
    """
    texts = [
        node.value for node in ast.walk(owner) if isinstance(getattr(node, "value", None), str)
    ]
    explains_none = any(re.search("None|[Ii]f not given|if there is", text) for text in texts)
    found = []
    for field, following in zip(owner.body, [*owner.body[1:], None], strict=True):
        if not isinstance(field, ast.AnnAssign):
            continue
        name, kind = ast.unparse(field.target), ast.unparse(field.annotation)
        unclear = re.search(r"(?<!jax\.)\b(Array|ndarray)\b", SHAPE.sub("", kind))
        unclear = unclear or (re.search(r"\bNone\b", kind) and not explains_none)
        documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
        if unclear and "help=" not in kind and not (documented or name.startswith("_")):
            found.append(f"{owner.name}.{name}")
    return found


def test_fields_have_a_docstring_where_the_type_does_not_tell_all():
    """Ruff asks for docstrings of modules, classes and functions; this asks for those of fields."""
    owners = [
        (name_of(path), node)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    assert [f"{file}: {x}" for file, owner in owners for x in unexplained_fields(owner)] == []


def test_every_package_is_on_one_page_of_the_reference():
    text = "".join(page.read_text("utf-8") for page in (DOCS / "api").glob("*.md"))
    shown = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    children = pkgutil.iter_modules([str(ROOT / "ape_jax")], "ape_jax.")
    public = [child.name for child in children if not child.name.startswith("ape_jax._")]
    assert sorted(shown) == sorted(["ape_jax", *public])


ARCHITECTURE = (DOCS / "architecture.md").read_text("utf-8")


def test_map_of_the_architecture_shows_every_file_in_its_folder():
    (tree,) = re.findall(r"```text\nape_jax/\n(.*?)```", ARCHITECTURE, re.DOTALL)
    listed, folder = set(), ""
    for line in tree.splitlines():
        indent, names = re.match(r"( +)((?:[\w./]+ ? ?)+)", line).groups()
        if names.split()[0].endswith("/"):
            folder = names.split()[0]
        else:
            listed |= {f"{folder if len(indent) > 2 else ''}{name}" for name in names.split()}
    listed = {name for name in listed if name.endswith(".py")}
    files = {path.relative_to(ROOT / "ape_jax").as_posix() for path in MODULES}
    assert listed - files == set()
    assert {name for name in files - listed if not name.endswith("__init__.py")} == set()


def test_architecture_names_files_and_what_is_in_them():
    text = re.sub(r"```.*?```", "", ARCHITECTURE, flags=re.DOTALL)
    files = set(re.findall(r"`((?:\w+/)+\w*(?:\.py)?)`", text))
    assert len(files) > 20
    assert [file for file in files if not (ROOT / "ape_jax" / file).exists()] == []
    pairs = re.findall(r"`(\w+)` (?:in|of) `([\w/]+)\.py`", text)
    assert len(pairs) >= 5
    for name, file in pairs:
        pkgutil.resolve_name(f"ape_jax.{file.replace('/', '.')}:{name}")


def test_tables_of_settings_list_every_one(hooks):
    text = (DOCS / "configuration.md").read_text("utf-8")
    parts = re.findall(r"<!-- make: settings (\w+) -->", text)
    lines = [line for part in parts for line in hooks.settings_table(part).splitlines()[2:]]
    names = [re.match(r"\| `(\w+)` \|", line)[1] for line in lines]
    assert sorted([*names, "algorithm"]) == sorted(ALL_SETTINGS)


def test_flags_in_the_table_of_presets_make_the_presets(hooks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = hooks.presets_table().splitlines()[2:]
    assert len(rows) == len(presets.names())
    for row in rows:
        name = re.match(r"\| `([\w-]+)`", row)[1]
        flags = " ".join(re.findall(r"`(--[^`]*)`", row)).split()
        config = train_options.unpack(cli.parse(["train", *flags])).config
        assert config == presets.config(name), name


def test_page_of_commands_shows_every_one_with_its_help(hooks, capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    commands = re.search(r"\{([\w\s,-]+)\}", capsys.readouterr().out)[1].replace("\n", "")
    page = (DOCS / "commands.md").read_text("utf-8")
    headings = re.findall(r"^## ([\w-]+)$", page, re.MULTILINE)
    assert sorted(headings) == sorted(commands.replace(" ", "").split(","))
    shown = hooks.filled(page)
    assert "<!-- make" not in shown
    for command in headings:
        assert f"usage: ape-jax {command} " in shown


def test_page_of_observers_lists_every_one_and_its_file():
    page = (DOCS / "observers.md").read_text("utf-8")
    link = r"\(api/observers\.md#ape_jax\.observers\.(\w+)\.\w+\)"
    rows = re.findall(rf"^\| \[`(\w+)`\]{link} \| (.*?) \|", page, re.MULTILINE)
    assert sorted(name for name, _, _ in rows) == sorted(attackers.ATTACKERS)
    for name, file, model in rows:
        assert f"**`{name}`**" in page
        assert (ROOT / "ape_jax" / "observers" / f"{file}.py").exists()
        threat = attackers.ATTACKERS[name].threat or "looks inside"
        assert model.split(";")[0].strip("`") == threat


def test_page_of_observers_lists_every_threat_model():
    page = (DOCS / "observers.md").read_text("utf-8")
    table = page.split("## Threat models")[1].split("\n\n")[1]
    assert re.findall(r"^\| `(\w+)`", table, re.MULTILINE) == list(THREATS)


def test_map_of_the_paper_names_what_exists():
    page = (DOCS / "paper.md").read_text("utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 8
    for _, here, tested in rows:
        assert "](" in here
        files = re.findall(r"`(tests/[\w/]+\.py)`", tested)
        assert files
        assert [file for file in files if not (ROOT / file).exists()] == []
    for name in re.findall(r"`(core\.[\w.]+)", page):
        pkgutil.resolve_name(f"ape_jax.{name}")
