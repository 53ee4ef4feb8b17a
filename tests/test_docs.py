"""The programs in docs/ run and print what the pages say they do."""

import re
from pathlib import Path

import jax

from ape_jax import exporting
from ape_jax.config import RunConfig, TrainConfig
from ape_jax.training import make_task

DOCS = Path(__file__).parents[1] / "docs"


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
    config = TrainConfig()
    task = make_task(config)
    heads = jax.vmap(task.networks.init)(jax.random.split(jax.random.key(0), 1)).heads
    (tmp_path / "exported").mkdir()
    exporting.export_run(tmp_path / "exported", RunConfig(config), task, heads)
    monkeypatch.chdir(tmp_path)
    assert run_programs("runs.md", capsys) == "{'log_probs': (3, 2, 5)}\n"


def test_no_page_holds_a_placeholder():
    for page in (DOCS.parent / "README.md", *DOCS.glob("*.md")):
        assert not re.search(r"\b[A-Z]{10,}\b", page.read_text("utf-8")), page
