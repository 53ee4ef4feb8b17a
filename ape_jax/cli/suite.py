"""``ape-jax suite``: presets and their controls over seeds, in one table."""

from pathlib import Path

from rich.console import Console

from ape_jax import presets
from ape_jax.cli.options import SuiteOptions
from ape_jax.cli.output import prepare, save_steps, say
from ape_jax.config import RunConfig
from ape_jax.evaluation import records, suite
from ape_jax.evaluation.effort import Effort
from ape_jax.evaluation.suite import EFFORT, QUICK
from ape_jax.evaluation.suite_records import Suite, SuiteRow
from ape_jax.evaluation.verdicts import MEANING
from ape_jax.reporting import audit_figures, figures, suite_tables, tables
from ape_jax.reporting.progress import progress_bars
from ape_jax.runs.metrics import write_text
from ape_jax.types import SettingError


def run(options: SuiteOptions, console: Console) -> int:
    """Measure preset by preset, and write after each."""
    out = options.out
    if out.suffix != ".json":
        raise SettingError(f"out must be named *.json; got {out}")
    asked = options.only, options.seeds, options.first_seed, options.quick
    configs = suite.suite_configs(*asked)
    prepare(out.parent, "file")
    effort = QUICK if options.quick else EFFORT
    rows = _known(options, configs, effort)

    def save(row: SuiteRow) -> None:
        rows[row.preset] = row
        _save(rows, out)

    with progress_bars(console) as progress:
        steps = suite.suite_rows(configs, effort, progress, out.with_suffix(""))
        code, finished = save_steps(steps, save)
    stdout = Console()
    result = Suite(tuple(finished))
    for header, own_lines, columns in (  # The whole tables are too wide for a terminal.
        (suite_tables.THREATS_HEADER, suite_tables.threat_lines(result), ["", "share"]),
        (
            suite_tables.SUITE_HEADER,
            suite_tables.suite_lines(result),
            ["who acts", "return of an episode"],
        ),
    ):
        for env, *cells in own_lines:
            lines = [pair for pair in zip(header[1:], cells, strict=True) if pair[1]]
            stdout.print(tables.rich_table(env, columns, lines))
    say(stdout, f"{suite_tables.EXPLANATION} {MEANING}")
    say(stdout, f"files: {out}, {out.with_suffix('.md')}, {out.with_suffix('.png')}")
    return code


def _save(rows: dict[str, SuiteRow], out: Path) -> None:
    """Write all rows: those of presets in the presets' order, then those of others."""
    names = [*(name for name in presets.PRESETS if name in rows), *rows]
    result = Suite(tuple(rows[name] for name in dict.fromkeys(names)))
    records.write(out, result)
    write_text(out.with_suffix(".md"), suite_tables.markdown(result))
    figures.save_figure(audit_figures.suite_threats(result), out.with_suffix(".png"))


def _known(
    options: SuiteOptions, configs: dict[str, RunConfig], effort: Effort
) -> dict[str, SuiteRow]:
    """Rows of an earlier suite by preset; all rows of a file must be of the same kind."""
    path = options.out
    if not path.exists():
        return {}
    rows = {row.preset: row for row in records.read(Suite, path).rows}
    kind = effort, options.seeds, options.first_seed
    for name, row in rows.items():
        if (row.effort, row.seeds, row.config.get("first_seed")) != kind:
            raise SettingError(
                f"out must hold rows of the same seeds and effort, with --quick or without; {path} "
                "holds others. Choose another"
            )
        if name in configs or name not in presets.PRESETS:
            continue
        asked = name, options.seeds, options.first_seed, options.quick
        (config,) = suite.suite_configs(*asked).values()
        if row.config != config.to_flat():
            raise SettingError(
                f"out must hold rows of presets as they are; {path} holds one of {name} with other "
                f"settings. Choose another, or add {name} to --only"
            )
    return rows
