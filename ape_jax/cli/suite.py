"""``ape-jax suite``: presets and their controls over seeds, in one table."""

import dataclasses
import json
from collections.abc import Set
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from rich.console import Console

from ape_jax import presets
from ape_jax.cli.output import INTERRUPTED, prepare, say
from ape_jax.config import RunConfig, resolve
from ape_jax.evaluation import suite
from ape_jax.evaluation.suite import SuiteEffort
from ape_jax.reporting import figures, tables
from ape_jax.runs.metrics import write_json, write_text
from ape_jax.training.trainer import progress_bar
from ape_jax.types import SettingError

QUICK = SuiteEffort(num_steps=25_600, fit_updates=100, num_episodes=64)
"""A first look."""


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
    """The results; beside them the same as a table in Markdown and as a figure. Rows of other
    presets that it holds are kept; they must be of the same seeds."""


def run(options: SuiteOptions, console: Console) -> int:
    """Measure preset by preset, and write after each."""
    if options.out.suffix != ".json":
        raise SettingError(f"out must be named *.json; got {options.out}")
    configs = {name: _config(name, options) for name in _chosen(options.only)}
    prepare(options.out.parent, "file")
    matplotlib.use("Agg")
    effort = QUICK if options.quick else SuiteEffort()
    rows = _known(options, configs.keys(), effort)
    finished: list[dict] = []
    code = 0
    with progress_bar(console) as progress:
        bar = progress.add_task("suite", total=len(configs), returns="")
        try:
            for name, config in configs.items():
                rows[name] = suite.run(
                    name, config, effort, lambda text: progress.update(bar, returns=text)
                )
                finished.append(rows[name])
                progress.update(bar, advance=1)
                known = [*presets.PRESETS]
                known += [preset for preset in rows if preset not in known]
                ordered = [rows[preset] for preset in known if preset in rows]
                write_json(options.out, {"rows": ordered})
                table = tables.markdown_table(tables.SUITE_HEADER, tables.suite_lines(ordered))
                write_text(options.out.with_suffix(".md"), table + "\n")
                picture = options.out.with_suffix(".png")
                figures.save_figure(figures.suite_shares(ordered), picture)
        except KeyboardInterrupt:
            if not finished:
                raise
            code = INTERRUPTED
    stdout = Console()
    _, *names = tables.SUITE_HEADER
    for env, *cells in tables.suite_lines(finished):  # Side by side they fit no terminal.
        lines = [pair for pair in zip(names, cells, strict=True) if pair[1]]
        stdout.print(tables.rich_table(env, ["who acts", "return of an episode"], lines))
    others = ", ".join(str(options.out.with_suffix(suffix)) for suffix in (".md", ".png"))
    say(stdout, f"files: {options.out}, {others}")
    return code


def _config(name: str, options: SuiteOptions) -> RunConfig:
    settings = {**presets.find(name), "seeds": options.seeds, "first_seed": options.first_seed}
    if options.quick:
        settings["num_updates"] = max(settings["num_updates"] // 20, 2)
    return resolve(settings)


def _chosen(only: str | None) -> list[str]:
    if only is None:
        return list(presets.PRESETS)
    by_env = {preset["env"]: name for name, preset in presets.PRESETS.items()}
    names = [name.strip() for name in only.split(",") if name.strip()]
    chosen = [by_env.get(name, name) for name in names]
    for name in chosen:
        if name not in presets.PRESETS:
            raise SettingError(
                f"only must name presets or environments of {', '.join(presets.PRESETS)}; got "
                f"{name!r}"
            )
    if not chosen:
        raise SettingError("only must name a preset or an environment; got none")
    return list(dict.fromkeys(chosen))


def _known(options: SuiteOptions, asked: Set[str], effort: SuiteEffort) -> dict[str, dict]:
    """Rows of an earlier run by preset; one table holds results of one kind."""
    path = options.out
    if not path.exists():
        return {}
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        tables.suite_lines(rows)
        plt.close(figures.suite_shares(rows))
        known = {row["preset"]: row for row in rows}
        kinds = [(row["effort"], row["seeds"], row["config"]["first_seed"]) for row in rows]
    except (ValueError, KeyError, TypeError, OSError):
        raise SettingError(
            f"out must be a new file or one of ape-jax suite; got {path}. Choose another"
        ) from None
    kind = dataclasses.asdict(effort), options.seeds, options.first_seed
    if any(other != kind for other in kinds):
        raise SettingError(
            f"out must hold rows of the same seeds and effort, with --quick or without; {path} "
            "holds others. Choose another"
        )
    for name in known.keys() & presets.PRESETS.keys() - asked:
        if known[name]["config"] != _config(name, options).to_flat():
            raise SettingError(
                f"out must hold rows of presets as they are; {path} holds one of {name} as it "
                f"was. Choose another, or add {name} to --only"
            )
    return known
