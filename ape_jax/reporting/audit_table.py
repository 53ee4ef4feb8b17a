"""The audit as tables for people."""

from ape_jax.evaluation.audit_records import Audit, AuditRow, Defence
from ape_jax.reporting import tables
from ape_jax.reporting.tables import with_interval

YARDSTICKS = ("mixture", "posterior")
"""Observers that look inside the ensemble: they attack nobody, but bound those who do."""

EXPLANATION = (
    "Clone return: return of an episode in which the clone acts. Share: how much of the ensemble's "
    "return (PE) the clone gets, on a scale where a uniformly random policy is 0. Agreement: "
    "probability that the clone acts as a demonstrator did on held-out steps. In brackets: 95 % "
    "interval of Student's t over seeds. Sampled clones draw their actions, greedy ones take the "
    "most probable action, tempered ones are in between (temperature 0.5); best is what an "
    "attacker finds who may try all its clones, sampled and greedy, in the environment. Rows "
    "marked * look inside the ensemble. The floor bounds every sampled clone that is a function of "
    "the state and was fitted to enough demonstrations; it does not bound dagger, which asks for "
    "actions."
)

HEADER = ["observer", "deployed", "sees", "clone return", "share", "agreement"]
NARROW_HEADER = HEADER[:-1]
"""Columns on the terminal, for eighty characters."""
TEXT_COLUMNS = 3
"""Number of columns, from the left, that hold text."""


def wide_cells(row: AuditRow) -> list[str]:
    """A line under ``HEADER``."""
    share = "" if row.fraction is None else with_interval(row.fraction)
    returns, agreement = with_interval(row.clone_return), with_interval(row.agreement)
    return [name_of(row), row.deployment, row.sees, returns, share, agreement]


def narrow_cells(row: AuditRow) -> list[str]:
    """A line under ``NARROW_HEADER``, with the interval of the return only."""
    share = "" if row.fraction is None else f"{row.fraction.mean:.0%}"
    return [name_of(row), row.deployment, row.sees, with_interval(row.clone_return, "z.1f"), share]


def name_of(row: AuditRow) -> str:
    """The observer; with a star where it looks inside the ensemble."""
    return f"{row.observer} *" if row.observer in YARDSTICKS else row.observer


def defence_facts(defence: Defence) -> str:
    """A line with the numbers of the ensemble itself."""
    known = {
        "PE": defence.pe_return,
        "worst expert": defence.worst_expert,
        "experts when greedy": defence.greedy_experts,
        "price": defence.price,
        "floor": defence.floor,
    }
    parts = [f"{name} {with_interval(x)}" for name, x in known.items() if x is not None]
    if defence.trapped is not None and defence.from_every_start is not None:
        parts.append(
            f"a trap in {sum(defence.trapped)} of {len(defence.trapped)} seed(s), with greedy "
            f"experts that arrive from every start in {sum(defence.from_every_start)}"
        )
    return ", ".join(parts)


def markdown(audit: Audit) -> str:
    """The content of ``audit.md``."""
    optimal = "" if audit.optimal_return is None else f", optimal {audit.optimal_return:.2f}"
    paragraphs = [
        f"# Audit of {audit.env}",
        f"{audit.seeds} seed(s), {audit.num_steps:,} demonstration steps, time limit "
        f"{audit.horizon}. Random policy {audit.random_return:.2f}{optimal}.",
        EXPLANATION,
    ]
    for defence in audit.defences:
        lines = [wide_cells(row) for row in audit.rows_of(defence.name)]
        paragraphs.append(f"## {defence.label}")
        paragraphs.append(f"{defence_facts(defence)}.")
        paragraphs.append(tables.markdown_table(HEADER, lines, TEXT_COLUMNS))
    if audit.skipped:
        skipped = [f"- {name} {reason}" for name, reason in audit.skipped.items()]
        paragraphs.append("## Observers that did not run\n\n" + "\n".join(skipped))
    return "\n\n".join(paragraphs) + "\n"
