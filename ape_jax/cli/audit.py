"""``ape-jax audit``: every observer against a run, a file of demonstrations, or all defences."""

import dataclasses
from pathlib import Path

import tyro
from rich.console import Console

from ape_jax.cli.output import INTERRUPTED, prepare, say
from ape_jax.evaluation import records
from ape_jax.evaluation.audit import audit
from ape_jax.evaluation.audit_records import Audit, AuditSettings
from ape_jax.reporting import audit_table, figures, tables
from ape_jax.reporting.progress import ProgressBars
from ape_jax.runs.metrics import write_text


@dataclasses.dataclass(frozen=True)
class AuditOptions:
    """Who can clone an ensemble, and how well? Every observer against it, with intervals.

    Without RUN, all defences are made on the gridworld and audited side by side.
    """

    settings: tyro.conf.OmitArgPrefixes[AuditSettings] = dataclasses.field(
        default_factory=AuditSettings
    )
    """What is asked of the audit."""
    run: tyro.conf.Positional[Path | None] = None
    """A run of ape-jax train, or a file of demonstrations."""
    out: Path = Path("runs/audit")
    """Directory of tables and figures; those of an earlier audit are replaced."""


FIGURES = ("observers.png", "demonstrations.png", "posterior_entropy.png")
"""Files of the figures."""


def run(options: AuditOptions, console: Console) -> int:
    """Audit, and write ``audit.json``, ``audit.md`` and figures."""
    results: list[Audit] = []

    def save(result: Audit) -> None:
        results.append(result)
        if not result.defences:  # Nothing is computed yet.
            prepare(options.out)
            return
        for figure in FIGURES:
            (options.out / figure).unlink(missing_ok=True)
        records.write(options.out / "audit.json", result)

    code = 0
    with ProgressBars(console) as progress:
        try:
            asked = dataclasses.asdict(options.settings)
            audit(options.run, **asked, progress=progress, on_step=save)
        except KeyboardInterrupt:
            if not results or not results[-1].defences:
                raise
            code = INTERRUPTED
    write_text(options.out / "audit.md", audit_table.markdown(results[-1]))
    _draw(results[-1], options.out)
    _show(results[-1], options.out, code)
    return code


def _draw(audit: Audit, out: Path) -> None:
    """Write the figures of what there is."""
    if audit.rows:
        figures.save_figure(figures.observer_bars(audit), out / FIGURES[0])
    if audit.curves:
        figures.save_figure(figures.limited_curves(audit), out / FIGURES[1])
    if any(defence.posterior_entropy for defence in audit.defences):
        figures.save_figure(figures.posterior_entropy(audit), out / FIGURES[2])


def _show(audit: Audit, out: Path, code: int) -> None:
    stdout = Console()
    header, text_columns = audit_table.NARROW_HEADER, audit_table.TEXT_COLUMNS
    for defence in audit.defences:
        lines = [audit_table.narrow_cells(row) for row in audit.rows_of(defence.name)]
        if lines:
            title = f"{defence.label}: {audit_table.defence_facts(defence)}"
            stdout.print(tables.rich_table(title, header, lines, text_columns))
    say(stdout, audit_table.EXPLANATION)
    for name, reason in audit.skipped.items():
        say(stdout, f"skipped: {name} {reason}")
    state = "" if code == 0 else "interrupted; what is finished is saved. "
    say(stdout, f"{state}{audit.wall_seconds:.0f} s; files in {out}")
