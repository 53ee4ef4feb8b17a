"""The program in docs/demonstrations.md writes a file that loads."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "demonstrations.md"
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_program_of_the_page_runs(tmp_path, monkeypatch, capsys):
    (program,) = PROGRAMS
    monkeypatch.chdir(tmp_path)
    exec(compile(program, str(PAGE), "exec"), {})
    printed = capsys.readouterr().out
    assert re.fullmatch(r"CartPole-v1 \(\d+, 4\) None\n", printed)
