"""The audit as tables for people."""

from ape_jax.evaluation.audit_records import Audit, AuditRow, Defence, ThreatRow
from ape_jax.evaluation.intervals import Interval
from ape_jax.evaluation.verdicts import MEANING, price_share, verdict
from ape_jax.observers.threats import THREATS
from ape_jax.reporting import tables
from ape_jax.reporting.tables import with_interval

YARDSTICKS = ("mixture", "posterior")
"""Observers that look inside the ensemble: they attack nobody, but bound those who do."""

EXPLANATION = (
    "Clone return: return of an episode in which the clone acts. Share: how much of the ensemble's "
    "return (PE) the clone gets, on a scale where a uniformly random policy is 0. Agreement: "
    "probability that the clone acts as a demonstrator did on held-out steps. In brackets: 95 % "
    "interval of Student's t over seeds. Sampled clones draw their actions, greedy ones take the "
    "most probable action, tempered ones are in between (temperature 0.5); own is the way of "
    "acting that belongs to the attacker; best is what an attacker finds who may try all its "
    "clones in the environment. Rows marked * look inside the ensemble. The floor bounds every "
    "sampled clone that is a function of the state and was fitted to enough demonstrations; it "
    "does not bound dagger, which asks for actions."
)

THREAT_EXPLANATION = (
    "For each threat model the attack with the highest return, of all that it allows. It is chosen "
    "by returns of other episodes than those that are shown. Episodes needed: demonstrated "
    "episodes with which these attackers get 90 % of the ensemble's return."
)

THREAT_HEADER = [
    "threat model",
    "verdict",
    "strongest attacker",
    "deployed",
    "clone return",
    "share",
    "episodes needed",
]
THREAT_TEXT_COLUMNS = 4
NARROW_THREAT_HEADER = [
    "threat",
    "strongest attacker",
    "verdict",
    "clone return",
    "share",
    "episodes",
]

HEADER = ["observer", "deployed", "sees", "clone return", "share", "agreement"]
NARROW_HEADER = HEADER[:-1]
"""Columns on the terminal, for eighty characters."""
TEXT_COLUMNS = 3
"""Number of columns, from the left, that hold text."""


def threat_cells(audit: Audit, defence: Defence, row: ThreatRow, form: str) -> list[str]:
    """A line under ``THREAT_HEADER``, with the return in this form."""
    known = any(point.defence == defence.name for point in audit.curves)
    never = "never" if known and row.fraction is not None else "–"
    needed = never if row.episodes_needed is None else f"{row.episodes_needed:,.0f}"
    return [
        row.threat,
        verdict(row.fraction, price_share(audit, defence)),
        row.attacker,
        row.deployment,
        with_interval(row.clone_return, form),
        "" if row.fraction is None else with_interval(row.fraction),
        needed,
    ]


def narrow_threat_cells(audit: Audit, defence: Defence, row: ThreatRow) -> list[str]:
    """A line under ``NARROW_THREAT_HEADER``."""
    threat, answer, attacker, deployed, returned, _, needed = threat_cells(
        audit, defence, row, "z.1f"
    )
    who, answer = f"{attacker}\n({deployed})", answer.replace(" ", "\n", 1)
    returned = returned.replace(" [", "\n[")
    return [threat, who, answer, returned, share_of(row.fraction), needed]


def share_of(fraction: Interval | None) -> str:
    """A share as a percentage; nothing where there is none."""
    return "" if fraction is None else f"{fraction.mean:.0%}"


def threat_matrix(audit: Audit) -> tuple[list[str], list[list[str]]]:
    """Header and lines: a defence a line, and what the strongest attacker of each model gets."""
    models = [name for name in THREATS if any(row.threat == name for row in audit.threats)]
    lines = []
    for defence in audit.defences:
        found = {row.threat: row for row in audit.threats_of(defence.name)}
        cells = [f"{defence.pe_return.mean:z.2f}"]
        for name in models:
            row = found.get(name)
            cells.append("" if row is None else f"{row.clone_return.mean:z.2f} {row.attacker}")
        lines.append([defence.label, *cells])
    return ["defence", "PE", *models], lines


def wide_cells(row: AuditRow) -> list[str]:
    """A line under ``HEADER``."""
    share = "" if row.fraction is None else with_interval(row.fraction)
    returns, agreement = with_interval(row.clone_return), with_interval(row.agreement)
    return [name_of(row), row.deployment, row.sees, returns, share, agreement]


def narrow_cells(row: AuditRow) -> list[str]:
    """A line under ``NARROW_HEADER``, with the interval of the return only."""
    returns = with_interval(row.clone_return, "z.1f")
    return [name_of(row), row.deployment, row.sees, returns, share_of(row.fraction)]


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
    if defence.settings is not None:
        parts.append(f"{defence.settings}, chosen for the price of greedy-APE")
    return ", ".join(parts)


def markdown(audit: Audit) -> str:
    """The content of ``audit.md``."""
    optimal = "" if audit.optimal_return is None else f", optimal {audit.optimal_return:.2f}"
    paragraphs = [
        f"# Audit of {audit.env}",
        f"{audit.seeds} seed(s), {audit.num_steps:,} demonstration steps, time limit "
        f"{audit.horizon}. Random policy {audit.random_return:.2f}{optimal}.",
        THREAT_EXPLANATION,
        "\n".join(f"- `{name}`: {threat.uses}." for name, threat in THREATS.items()),
    ]
    if audit.threats:
        paragraphs.append(tables.markdown_table(*threat_matrix(audit)))
    paragraphs += [MEANING, EXPLANATION]
    for defence in audit.defences:
        lines = [wide_cells(row) for row in audit.rows_of(defence.name)]
        paragraphs.append(f"## {defence.label}")
        paragraphs.append(f"{defence_facts(defence)}.")
        threats = audit.threats_of(defence.name)
        if threats:
            cells = [threat_cells(audit, defence, row, "z.2f") for row in threats]
            table = tables.markdown_table(THREAT_HEADER, cells, THREAT_TEXT_COLUMNS)
            paragraphs.append(table)
        paragraphs.append(tables.markdown_table(HEADER, lines, TEXT_COLUMNS))
    if audit.skipped:
        skipped = [f"- {name} {reason}" for name, reason in audit.skipped.items()]
        paragraphs.append("## Observers that did not run\n\n" + "\n".join(skipped))
    return "\n\n".join(paragraphs) + "\n"
