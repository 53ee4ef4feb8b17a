"""Results for people: the same table for the terminal and for Markdown."""

from collections.abc import Sequence

from rich.table import Table

EXPLANATION = (
    "Every column is an exact expected return on the gridworld and names who acts: PE is the "
    "ensemble (an expert drawn once an episode); greedy experts are the experts themselves, each "
    "taking its most probable action; mixture π_o is the paper's observer, which draws an expert "
    "afresh at every state with equal weights and sees no data; BC is a real clone, fitted by "
    "maximum likelihood to pooled demonstrations, which then samples its actions or takes the "
    "most probable one. BC sampled cannot fall below the floor J(PE) − H·ε, ε being the share of "
    "expert episodes that reach the time limit H: a cloner that samples recovers the experts' "
    "average state-action occupancy, and with it their average return, except where the limit "
    "cut them off."
)
"""Which observer each column is, and what bounds it."""

_COLUMNS = {
    "pe_return": "PE",
    "greedy_experts": "greedy experts",
    "mixture": "mixture π_o",
    "bc_sampled": "BC sampled",
    "bc_greedy": "BC greedy",
    "floor": "floor",
}
_LABELS = {
    "optimal": "optimal PE",
    "near_optimal": "near-optimal PE",
    "random": "random PE",
    "pg_ape": "PG-APE",
    "greedy_ape": "greedy-APE",
    "greedy_ape_single": "greedy-APE, 1 expert",
}


def table1_cells(content: dict) -> tuple[list[str], list[list[str]]]:
    """Header and lines of Table 1 from the content of ``table1.json``."""
    header = ["ensemble", *_COLUMNS.values(), "paper: PE", "paper: clone"]
    lines = []
    for row in content["rows"]:
        paper = content["paper"].get(row["name"], {})
        printed = [
            f"{paper[key]:.2f}" if key in paper else "" for key in ("pe_return", "clone_return")
        ]
        own = [mean_and_std(row[column]) for column in _COLUMNS]
        lines.append([_LABELS[row["name"]], *own, *printed])
    return header, lines


def mean_and_std(summary: dict) -> str:
    """As in ``−12.85 ± 0.56``."""
    return f"{summary['mean']:.2f} ± {summary['std']:.2f}"


def rich_table(title: str, header: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    """For the terminal."""
    table = Table(title=title, title_justify="left")
    table.add_column(header[0])
    for name in header[1:]:
        table.add_column(name, justify="right")
    for line in lines:
        table.add_row(*line)
    return table


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """For a file."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *lines])
