"""``ape-jax sweep``: the frontier of PE return against clone return."""

import dataclasses
import math
import time
from pathlib import Path

from rich.console import Console

from ape_jax.cli.output import INTERRUPTED, prepare, say
from ape_jax.config import RunConfig, recipe
from ape_jax.evaluation.sweep import OBSERVERS, Sweep, compare
from ape_jax.reporting import figures, tables
from ape_jax.reporting.audit_table import with_interval
from ape_jax.runs.metrics import write_json, write_text
from ape_jax.training.trainer import describe_returns, progress_bar
from ape_jax.types import HeadName, SettingError


@dataclasses.dataclass(frozen=True)
class SweepOptions:
    """What protection costs: train over beta and seeds at once, against two observers.

    On a finite MDP, exact training draws the frontier beside the sampled one.
    """

    betas: str = "0.05,0.1,0.15,0.2,0.25,0.3,0.35,0.4"
    """Weights of the observer's return, with commas between them."""
    env: str = "GridWorld-ape"
    """Any registered gymnax environment."""
    head: HeadName = "tabular"
    """Expert heads; the rest is that head's recipe."""
    num_experts: int = 2
    """Expert heads in an ensemble (E)."""
    num_updates: int | None = None
    """Updates of sampled training; the recipe's if not given."""
    seeds: int = 5
    """Runs for each beta."""
    first_seed: int = 0
    """The seeds are numbered from here."""
    out: Path = Path("runs/sweep")
    """Directory of table and figure; those of an earlier sweep are replaced."""


def run(options: SweepOptions, console: Console) -> int:
    """Train, and write ``sweep.json``, ``sweep.md`` and ``frontier.png``."""
    betas = _betas(options.betas)
    config, hypers = recipe(options.head)
    num_updates = config.num_updates if options.num_updates is None else options.num_updates
    config = dataclasses.replace(
        config, env=options.env, num_experts=options.num_experts, num_updates=num_updates
    )
    RunConfig(config, hypers, options.seeds, options.first_seed)  # Checks the seeds.
    sweep = Sweep(config, hypers, betas, options.seeds, options.first_seed)
    out = prepare(options.out)
    (out / "frontier.png").unlink(missing_ok=True)

    started = time.monotonic()
    content: dict = {
        "env": options.env,
        "head": config.head,
        "num_experts": options.num_experts,
        "horizon": sweep.tasks["uniform"].world.horizon,
        "seeds": options.seeds,
        "num_updates": num_updates,
        "points": [],
        "comparison": [],
    }
    code = 0
    with progress_bar(console) as progress:

        def add(point):
            content["points"].append(point.to_json())
            content["comparison"] = compare(content["points"])
            content["wall_seconds"] = time.monotonic() - started
            write_json(out / "sweep.json", content)

        try:
            for observer in OBSERVERS:
                bar = progress.add_task(f"{observer}, sampled", total=None, returns="compiling")

                def report(chunk, bar=bar):
                    progress.update(
                        bar,
                        total=chunk.num_updates,
                        completed=chunk.num_done,
                        returns=describe_returns(chunk.metrics),
                    )

                for point in sweep.sampled(observer, report):
                    add(point)
                if sweep.tasks[observer].world.mdp is None:
                    continue
                bar = progress.add_task(f"{observer}, exact", total=len(betas), returns="")
                for point in sweep.exact(observer):
                    add(point)
                    progress.update(bar, advance=1, returns=f"beta {point.beta:g}")
        except KeyboardInterrupt:
            if not content["points"]:
                raise
            code = INTERRUPTED
    figures.save_figure(figures.frontier(content), out / "frontier.png")
    _show(content, out, code)
    return code


def _betas(text: str) -> tuple[float, ...]:
    try:
        betas = tuple(float(part) for part in text.split(","))
    except ValueError:
        betas = ()
    if not betas or not all(0 <= beta < math.inf for beta in betas):
        raise SettingError(
            f"betas must be numbers >= 0 with commas between them, such as 0.1,0.2; got {text!r}"
        )
    return tuple(dict.fromkeys(betas))


HEADER = ["observer", "training", "beta", "PE", "worst expert", "clone"]
"""Columns of the sweep's table."""
TEXT_COLUMNS = 2
"""How many columns, from the left, hold words."""
COMPARISON = ["observer", "beta", "PE", "gap, sampled", "gap, exact", "ratio"]
"""Columns of the table that sets sampled training against exact."""


def _show(content: dict, out: Path, code: int) -> None:
    lines = [
        [point["observer"], point["training"], f"{point['beta']:g}"]
        + [with_interval(point[key]) for key in ("pe_return", "worst_expert", "clone_return")]
        for point in content["points"]
    ]
    compared = [
        [line["observer"], f"{line['beta']:g}", f"{line['pe_return']:.2f}"]
        + [f"{line[key]:.2f}" for key in ("sampled_gap", "exact_gap")]
        + ["" if line["ratio"] is None else f"{line['ratio']:.2f}"]
        for line in content["comparison"]
    ]
    note = (
        "uniform: the paper's mixture, sampling; greedy: the posterior mixture, taking its most "
        "probable action. In brackets: 95 % bootstrap interval over seeds."
    )
    paragraphs = [
        f"# Frontier of {content['env']}",
        note,
        tables.markdown_table(HEADER, lines, TEXT_COLUMNS),
        "Gap (PE − clone) of sampled training, and that of the exact frontier at the same PE:",
        tables.markdown_table(COMPARISON, compared),
    ]
    write_text(out / "sweep.md", "\n\n".join(paragraphs) + "\n")
    stdout = Console()
    stdout.print(tables.rich_table("PE and clone over beta", HEADER, lines, TEXT_COLUMNS))
    if compared:
        title = "gap (PE - clone) of sampled training and of the exact frontier at the same PE"
        stdout.print(tables.rich_table(title, COMPARISON, compared))
    say(stdout, note)
    state = "" if code == 0 else "interrupted; what is finished is saved. "
    say(stdout, f"{state}{content['wall_seconds']:.0f} s; files in {out}")
