"""The suite as tables: threat models first, then returns, then controls."""

from ape_jax.evaluation.intervals import holm
from ape_jax.evaluation.suite import GREEDY_CLONE
from ape_jax.evaluation.suite_records import Suite, SuiteRow
from ape_jax.evaluation.verdicts import MEANING, PROTECTED, UNDECIDED, verdict
from ape_jax.observers.threats import THREATS
from ape_jax.reporting.audit_table import THREAT_EXPLANATION
from ape_jax.reporting.tables import markdown_table, with_interval

THREATS_HEADER = ["environment", "PE", "price", *THREATS, "protected under", "undecided"]

EXPLANATION = (
    "Price: share of the return without an observer that the ensemble gives up. Then the share of "
    "the ensemble's return that the strongest attacker of each threat model gets, and its name; "
    "both count from the return of a random policy. In brackets: 95 % interval of Student's t over "
    "seeds."
)

CONTROL_HEADER = [
    "environment",
    "PE",
    "greedy clone",
    "one expert: PE",
    "its greedy clone",
    "β",
    "p",
    "p, Holm",
]

CONTROL_EXPLANATION = (
    "The control with one expert is trained with several β, and the one is taken whose return is "
    "closest to that of the ensemble. p: exact permutation test of the returns of both greedy "
    "clones; Holm's correction is over the environments of this table. Only where the control "
    "costs the same and the difference is significant is it an effect of the ensemble."
)


def threat_lines(suite: Suite) -> list[list[str]]:
    """Lines under ``THREATS_HEADER``."""
    lines = []
    for row in suite.rows:
        found = {threat.threat: threat for threat in row.threats}
        answers = {name: verdict(one.fraction, row.price) for name, one in found.items()}
        cells = []
        for name in THREATS:
            one = found.get(name)
            share = "" if one is None or one.fraction is None else with_interval(one.fraction)
            cells.append("" if one is None else f"{share} {one.attacker} ({one.deployment})")
        protected, undecided = (
            ", ".join(name for name, answer in answers.items() if answer == which) or "none"
            for which in (PROTECTED, UNDECIDED)
        )
        price = "" if row.price is None else with_interval(row.price)
        pe_return = with_interval(row.pe_return, ".4g")
        lines.append([_environment(row), pe_return, price, *cells, protected, undecided])
    return lines


def control_lines(suite: Suite) -> list[list[str]]:
    """Lines under ``CONTROL_HEADER``, of the rows that have a test."""
    tested = [(row, row.control_p_value) for row in suite.rows if row.control_p_value is not None]
    adjusted = holm([p_value for _, p_value in tested])
    lines = []
    for (row, own), p_value in zip(tested, adjusted, strict=True):
        single = row.single_expert_control
        numbers = (
            row.pe_return,
            row.clones[GREEDY_CLONE],
            single.pe_return,
            single.clones[GREEDY_CLONE],
        )
        lines.append(
            [
                _environment(row),
                *(with_interval(interval, ".4g") for interval in numbers),
                f"{row.single_beta:g}",
                f"{own:.3f}",
                f"{p_value:.3f}",
            ]
        )
    return lines


def markdown(suite: Suite) -> str:
    """The content of the file beside ``suite.json``."""
    paragraphs = [
        f"{THREAT_EXPLANATION} {EXPLANATION}",
        markdown_table(THREATS_HEADER, threat_lines(suite)),
        MEANING,
        "Returns of an episode:",
        markdown_table(SUITE_HEADER, suite_lines(suite)),
        CONTROL_EXPLANATION,
        markdown_table(CONTROL_HEADER, control_lines(suite)),
    ]
    return "\n\n".join(paragraphs) + "\n"


def _environment(row: SuiteRow) -> str:
    return f"{row.env} (E = {row.num_experts})"


SUITE_CLONES = {
    "behaviour_cloning_sampled": "BC sampled",
    "behaviour_cloning_greedy": "BC greedy",
    "posterior_sampled": "posterior sampled",
    "mean_action": "mean action",
}
SUITE_HEADER = ["environment", "β = 0", "PE", "worst expert", "greedy experts"]
SUITE_HEADER += [*SUITE_CLONES.values(), "one expert: itself, greedy, BC greedy"]


def suite_lines(suite: Suite) -> list[list[str]]:
    """Lines under ``SUITE_HEADER``."""
    lines = []
    for row in suite.rows:
        own = (row.beta0_return, row.pe_return, row.worst_expert, row.greedy_experts)
        single = row.single_expert_control
        greedy_clone = single.clones[GREEDY_CLONE]
        control = (single.pe_return, single.greedy_experts, greedy_clone)
        clones = [row.clones.get(name) for name in SUITE_CLONES]
        lines.append(
            [
                _environment(row),
                *(with_interval(interval, ".4g") for interval in own),
                *("" if clone is None else with_interval(clone, ".4g") for clone in clones),
                ", ".join(f"{interval.mean:.4g}" for interval in control),
            ]
        )
    return lines
