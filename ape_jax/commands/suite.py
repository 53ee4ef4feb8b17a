"""``ape-jax suite``: presets and their controls over seeds, in one table."""

import dataclasses
import json
from pathlib import Path

from rich.console import Console

from ape_jax import presets, suite, tables
from ape_jax.commands.output import INTERRUPTED, prepare, say
from ape_jax.metrics import write_json
from ape_jax.runner import progress_bar
from ape_jax.suite import SuiteEffort
from ape_jax.types import SettingError


@dataclasses.dataclass(frozen=True)
class SuiteOptions:
    """Train ensembles and their controls in every preset's environment, and clone them all."""

    only: str | None = None
    """Presets or environments, names with commas between them; all, if not given."""
    seeds: int = 5
    """Seeds of every number."""
    first_seed: int = 1000
    """They are numbered from here: presets were tuned on seeds below."""
    quick: bool = False
    """A first look: a twentieth of the updates, a tenth of the demonstrations."""
    out: Path = Path("runs/suite.json")
    """The results; beside them the same as a table in Markdown. Rows of other environments that it
    holds are kept."""


def run(options: SuiteOptions, console: Console) -> int:
    """Measure preset by preset, and write after each."""
    if options.seeds < 1:
        raise SettingError(f"seeds must be at least 1; got {options.seeds}")
    names = _chosen(options.only)
    prepare(options.out.parent, "file")
    rows = _known(options.out)
    effort = SuiteEffort()
    if options.quick:
        effort = SuiteEffort(num_steps=25_600, fit_updates=100, num_episodes=64)
    code = 0
    with progress_bar(console) as progress:
        bar = progress.add_task("suite", total=len(names), returns="")
        try:
            for name in names:
                train, hypers = presets.find(name)
                if options.quick:
                    updates = max(train.num_updates // 20, 2)
                    train = dataclasses.replace(train, num_updates=updates)
                rows[name] = suite.run(
                    *(name, train, hypers, effort, options.first_seed, options.seeds),
                    lambda text: progress.update(bar, returns=text),
                )
                progress.update(bar, advance=1)
                ordered = [rows[preset] for preset in presets.PRESETS if preset in rows]
                write_json(options.out, {"rows": ordered})
                table = tables.markdown_table(tables.SUITE_HEADER, tables.suite_lines(ordered))
                options.out.with_suffix(".md").write_text(table + "\n", encoding="utf-8")
        except KeyboardInterrupt:
            code = INTERRUPTED
    stdout = Console()
    finished = [rows[name] for name in names if name in rows]
    stdout.print(tables.rich_table("suite", tables.SUITE_HEADER, tables.suite_lines(finished)))
    say(stdout, f"files: {options.out}, {options.out.with_suffix('.md')}")
    return code


def _chosen(only: str | None) -> list[str]:
    if only is None:
        return list(presets.PRESETS)
    by_env = {preset.train.env: name for name, preset in presets.PRESETS.items()}
    names = [name.strip() for name in only.split(",") if name.strip()]
    chosen = [by_env.get(name, name) for name in names]
    for name in chosen:
        presets.find(name)
    if not chosen:
        raise SettingError("only must name a preset or an environment; got none")
    return chosen


def _known(path: Path) -> dict[str, dict]:
    """Rows of an earlier run, by preset."""
    if not path.exists():
        return {}
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        return {row["preset"]: row for row in rows}
    except (ValueError, KeyError, TypeError, OSError):
        raise SettingError(
            f"out must be a new file or one of ape-jax suite; got {path}. Choose another"
        ) from None
