"""Results for people: the same table for the terminal and for Markdown."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table

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
"""Which observer each column is, and what bounds it."""

PAPER_NOTE = (
    "The paper prints −16.33 for PG-APE and −44.14 for its clone. With a limit of 100 steps, at "
    "most 16.33 % of such episodes are truncated, so their floor is −32.7 or higher: that clone "
    "was not an ideal one that samples."
)
"""Why the paper's clone belongs in none of our columns."""

_COLUMNS = {
    "pe_return": "PE",
    "greedy_experts": "greedy experts",
    "mixture": "mixture π_o",
    "bc_sampled": "BC sampled",
    "bc_greedy": "BC greedy",
    "floor": "floor",
}


def table1_cells(content: dict, labels: Mapping[str, str]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of Table 1.

    Args:
      content: of ``table1.json``.
      labels: row names and what people call them.
    """
    header = ["ensemble", *_COLUMNS.values(), "paper"]
    lines = []
    for row in content["rows"]:
        paper = content["paper"].get(row["name"], {})
        printed = " ".join(f"{value:.2f}" for value in paper.values())
        own = [mean_and_std(row[column]) for column in _COLUMNS]
        lines.append([labels[row["name"]], *own, printed])
    return header, lines


def mean_and_std(summary: dict) -> str:
    """As in ``-12.85 ±0.56``; the mean alone where there is one seed."""
    spread = f" ±{summary['std']:.2f}" if len(summary["values"]) > 1 else ""
    return f"{summary['mean']:.2f}{spread}"


def narrow(cells: Sequence[str]) -> list[str]:
    """Cells broken at their blanks but for the first, so that Table 1 fits in eighty characters."""
    return [cells[0], *(cell.replace(" ", "\n") for cell in cells[1:])]


def rich_table(
    title: str, header: Sequence[str], lines: Sequence[Sequence[str]], text_columns: int = 1
) -> Table:
    """For the terminal; the first columns hold text, the others numbers."""
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
    """For a file; the first columns hold text, the others numbers."""
    rule = ["---"] * text_columns + ["---:"] * (len(header) - text_columns)
    rows = [[cell.replace("|", r"\|") for cell in line] for line in [header, rule, *lines]]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


SUITE_HEADER = [
    *("environment", "β = 0", "PE", "worst expert", "greedy experts"),
    *("BC sampled", "BC greedy", "posterior sampled", "mean action"),
    *("one expert: itself, greedy, BC greedy", "steps/s"),
]
"""Columns of the suite's table."""


def suite_lines(rows: Sequence[dict]) -> list[list[str]]:
    """Lines under ``SUITE_HEADER``, of the rows of ``suite.json``."""
    lines = []
    for row in rows:
        clones, single = row["clones"], row["single_expert_control"]
        control = (
            single["pe_return"],
            single["greedy_experts"],
            single["clones"]["behaviour_cloning_greedy"],
        )
        lines.append(
            [
                f"{row['env']} (E = {row['num_experts']})",
                *(with_interval(row[name]) for name in ("beta0_return", "pe_return")),
                *(with_interval(row[name]) for name in ("worst_expert", "greedy_experts")),
                *(
                    with_interval(clones[name]) if name in clones else ""
                    for name in (
                        *("behaviour_cloning_sampled", "behaviour_cloning_greedy"),
                        *("posterior_sampled", "mean_action"),
                    )
                ),
                ", ".join(f"{summary['mean']:.4g}" for summary in control),
                "" if row["steps_per_second"] is None else f"{row['steps_per_second']:,.0f}",
            ]
        )
    return lines


def with_interval(summary: dict) -> str:
    """As in ``-12.9 [-13.5, -12.1]``; the mean alone where there is one seed."""
    if summary["low"] is None:
        return f"{summary['mean']:.4g}"
    return f"{summary['mean']:.4g} [{summary['low']:.4g}, {summary['high']:.4g}]"
