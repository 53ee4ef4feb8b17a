"""``ape-jax audit``: every observer against a run, a file of demonstrations, or all defences."""

from pathlib import Path

from rich.console import Console

from ape_jax.cli.options import AuditOptions
from ape_jax.cli.output import prepare, save_steps, say, say_finished
from ape_jax.evaluation import records
from ape_jax.evaluation.audit import audit_steps
from ape_jax.evaluation.audit_records import Audit
from ape_jax.evaluation.verdicts import MEANING
from ape_jax.reporting import audit_figures, audit_table, figures, tables
from ape_jax.reporting.progress import progress_bars
from ape_jax.reporting.tables import with_interval
from ape_jax.runs.metrics import write_text

FIGURES = ("threats.png", "observers.png", "demonstrations.png", "posterior_entropy.png")


def run(options: AuditOptions, console: Console) -> int:
    """Audit, and write ``audit.json``, ``audit.md`` and figures."""
    out = options.out

    def save(result: Audit) -> None:
        for figure in FIGURES:
            (out / figure).unlink(missing_ok=True)
        records.write(out / "audit.json", result)

    with progress_bars(console) as progress:
        steps = audit_steps(options.run, options.settings, progress)
        prepare(out)
        code, (*_, result) = save_steps(steps, save)
    write_text(out / "audit.md", audit_table.markdown(result))
    _draw(result, out)
    _show(result, out, code)
    return code


def _draw(audit: Audit, out: Path) -> None:
    """Write the figures of what there is."""
    threats, observers, demonstrations, entropy = (out / name for name in FIGURES)
    if any(row.fraction for row in audit.threats):
        figures.save_figure(audit_figures.threat_shares(audit), threats)
    if audit.rows:
        figures.save_figure(audit_figures.observer_bars(audit), observers)
    if any(point.fraction for point in audit.curves):
        figures.save_figure(audit_figures.demonstration_curves(audit), demonstrations)
    if any(defence.posterior_entropy for defence in audit.defences):
        figures.save_figure(audit_figures.posterior_entropy(audit), entropy)


def _show(audit: Audit, out: Path, code: int) -> None:
    stdout = Console()
    header, text_columns = audit_table.NARROW_HEADER, audit_table.TEXT_COLUMNS
    for defence in audit.defences:
        threats = audit.threats_of(defence.name)
        if threats:
            lines = [audit_table.narrow_threat_cells(audit, defence, row) for row in threats]
            title = f"{defence.label}: PE {with_interval(defence.pe_return)}"
            table = audit_table.NARROW_THREAT_HEADER
            stdout.print(tables.rich_table(title, table, lines, len(table) - 3))
    say(stdout, f"{audit_table.THREAT_EXPLANATION} {MEANING}")
    for defence in audit.defences:
        lines = [audit_table.narrow_cells(row) for row in audit.rows_of(defence.name)]
        if lines:
            title = f"{defence.label}: {audit_table.defence_facts(defence)}"
            stdout.print(tables.rich_table(title, header, lines, text_columns))
    say(stdout, audit_table.EXPLANATION)
    for name, reason in audit.skipped.items():
        say(stdout, f"skipped: {name} {reason}")
    say_finished(stdout, code, audit.wall_seconds, out)
