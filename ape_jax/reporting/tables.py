"""Results for people: the same table for the terminal and for Markdown."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from ape_jax.evaluation.intervals import Interval, MeanStd
from ape_jax.evaluation.reproduce import LABELS, Table1
from ape_jax.evaluation.sweep import Sweep

EXPLANATION = (
    "Every column is an exact expected return on the gridworld and names who acts: PE is the "
    "ensemble (an expert drawn once an episode); greedy experts are the experts themselves, each "
    "taking its most probable action; mixture π_o is the paper's observer, which draws an expert "
    "afresh at every state with equal weights and sees no data; BC is a real clone, fitted by "
    "maximum likelihood to pooled demonstrations, which then samples its actions or takes the "
    "most probable one. With enough demonstrations BC sampled cannot fall below the floor "
    "J(PE) − H·ε, ε being the share of expert episodes that reach the time limit H: a cloner that "
    "samples recovers the experts' average state-action occupancy, and with it their average "
    "return, except where the limit cut them off."
)

PAPER_NOTE = (
    "The paper prints −16.33 for PG-APE and −44.14 for its clone. With a limit of 100 steps, at "
    "most 16.33 % of such episodes are truncated, so their floor is −32.7 or higher: that clone "
    "was not an ideal one that samples."
)
"""Why the paper's clone belongs in none of our columns."""

COLUMNS = {
    "pe_return": "PE",
    "greedy_experts": "greedy experts",
    "mixture": "mixture π_o",
    "bc_sampled": "BC sampled",
    "bc_greedy": "BC greedy",
    "floor": "floor",
}
"""Columns of Table 1: fields of its rows, and what people call them."""


def with_interval(interval: Interval, form: str = "z.2f") -> str:
    """Text such as ``-12.85 [-13.20, -12.51]``, each number in this form; one seed has no range."""
    if interval.low is None:
        return format(interval.mean, form)
    return f"{interval.mean:{form}} [{interval.low:{form}}, {interval.high:{form}}]"


def mean_and_std(summary: MeanStd) -> str:
    """Text such as ``-12.85 ±0.56``; the mean only where there is one seed."""
    std = f" ±{summary.std:.2f}" if len(summary.array) > 1 else ""
    return f"{summary.mean:.2f}{std}"


def rich_table(
    title: str, header: Sequence[str], lines: Sequence[Sequence[str]], text_columns: int = 1
) -> Table:
    """A table for the terminal; the first columns hold text, the others numbers."""
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index < text_columns else "right")
    for line in lines:
        table.add_row(*line)
    return table


def markdown_table(
    header: Sequence[str], lines: Sequence[Sequence[str]], text_columns: int = 1
) -> str:
    """A table for a file; the first columns hold text, the others numbers."""
    rule = ["---"] * text_columns + ["---:"] * (len(header) - text_columns)
    rows = [[cell.replace("|", r"\|") for cell in line] for line in [header, rule, *lines]]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def table1_cells(table: Table1) -> tuple[list[str], list[list[str]]]:
    """Header and lines of Table 1."""
    header = ["ensemble", *COLUMNS.values(), "paper"]
    lines = []
    for row in table.rows:
        printed = " ".join(f"{value:.2f}" for value in table.paper.get(row.name, {}).values())
        own = [mean_and_std(getattr(row, column)) for column in COLUMNS]
        lines.append([LABELS[row.name], *own, printed])
    return header, lines


def narrow(cells: Sequence[str]) -> list[str]:
    """Cells broken at their blanks, except the first, so that Table 1 fits in 80 characters."""
    return [cells[0], *(cell.replace(" ", "\n") for cell in cells[1:])]


SWEEP_HEADER = ["observer", "training", "beta", "PE", "worst expert", "clone"]
"""Columns of the sweep's table; the first two hold text."""
COMPARISON_HEADER = ["observer", "beta", "PE", "gap, sampled", "gap, exact", "ratio"]
SWEEP_NOTE = (
    "uniform: the paper's mixture, which samples; greedy: the posterior mixture, which takes its "
    "most probable action. In brackets: 95 % interval of Student's t over seeds."
)


def sweep_lines(sweep: Sweep) -> list[list[str]]:
    """Lines under ``SWEEP_HEADER``."""
    lines = []
    for point in sweep.points:
        numbers = map(with_interval, (point.pe_return, point.worst_expert, point.clone_return))
        lines.append([point.observer, point.training, f"{point.beta:g}", *numbers])
    return lines


def comparison_lines(sweep: Sweep) -> list[list[str]]:
    """Lines under ``COMPARISON_HEADER``."""
    lines = []
    for line in sweep.comparison:
        numbers = (line.pe_return, line.sampled_gap, line.exact_gap, line.ratio)
        texts = ("" if value is None else f"{value:.2f}" for value in numbers)
        lines.append([line.observer, f"{line.beta:g}", *texts])
    return lines


def sweep_markdown(sweep: Sweep) -> str:
    """The content of ``sweep.md``."""
    paragraphs = (
        f"# Frontier of {sweep.env}",
        SWEEP_NOTE,
        markdown_table(SWEEP_HEADER, sweep_lines(sweep), 2),
        "Gap (PE − clone) of sampled training, and that of the exact frontier at the same PE:",
        markdown_table(COMPARISON_HEADER, comparison_lines(sweep)),
    )
    return "\n\n".join(paragraphs) + "\n"
