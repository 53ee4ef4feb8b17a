"""``ape-jax audit``: every observer against a run, a file of demonstrations, or all defences."""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from gymnax.environments import spaces
from jaxtyping import Array, Key
from rich.console import Console

from ape_jax import envs
from ape_jax.algorithms.task import Task, make_task
from ape_jax.cli.output import INTERRUPTED, prepare, say
from ape_jax.config import Hypers, PGConfig, TrainConfig, recipe
from ape_jax.core import tabular
from ape_jax.demonstrations import collect
from ape_jax.demonstrations import files as demonstration_files
from ape_jax.demonstrations.collect import Demonstrations
from ape_jax.evaluation import attackers, defences
from ape_jax.evaluation import returns as evaluation
from ape_jax.evaluation.attackers import Effort
from ape_jax.evaluation.audit import HELD_OUT_STEPS, Auditor
from ape_jax.evaluation.defences import Defences, Ensemble
from ape_jax.evaluation.intervals import interval, percentiles
from ape_jax.reporting import audit_table, tables
from ape_jax.reporting import figures as plotting
from ape_jax.runs import checkpoint
from ape_jax.runs.metrics import fingerprint, write_json, write_text
from ape_jax.training.trainer import EVALUATE, progress_bar, seed_keys
from ape_jax.types import PGHeadName, SettingError

ALL = "all"
"""Stands for every name."""


@dataclasses.dataclass(frozen=True)
class AuditOptions:
    """Who can clone an ensemble, and how well? Every observer against it, with intervals.

    Without RUN, all defences are made on the gridworld and audited side by side.
    """

    run: tyro.conf.Positional[Path | None] = None
    """A run of ape-jax train, or a file of demonstrations."""
    observers: str = ALL
    """Names with commas between them."""
    defences: str | None = None
    """Ensembles to make and compare with, names with commas between them; none beside a RUN, and
    all without one, if not given."""
    seeds: int | None = None
    """Seeds to audit: those of the run, or 10 (3 with --quick), if not given."""
    steps: int | None = None
    """Demonstration steps of each seed: 1,000,000, or 100,000 with --quick, if not given."""
    quick: bool = False
    """A first look: fewer seeds and demonstrations, shorter training."""
    out: Path = Path("runs/audit")
    """Directory of tables and figures; those of an earlier audit are replaced."""


QUICK_UPDATES = 400
"""The most updates of training, in a first look."""
SHOWN, HELD_OUT, ATTACK, MEASURE, RANDOM = range(5)
"""Purposes of the keys drawn from a seed's evaluation key."""
FIGURES = ("observers.png", "demonstrations.png", "posterior_entropy.png")
"""Files of the figures."""


class Given(NamedTuple):
    """A file's demonstrations: each seed has a resample of its episodes."""

    shown: Demonstrations
    """[K, N, …]."""
    held_out: Demonstrations
    """[K, …]: episodes that no resample draws from."""
    pe_return: np.ndarray
    """[K]."""


class Subject(NamedTuple):
    """What is audited."""

    task: Task
    """Environment, horizon and networks of the ensembles."""
    keys: Key[Array, " K"]
    """For evaluation, one a seed."""
    ensembles: Iterator[Ensemble]
    """Each is trained when its turn comes."""
    num_ensembles: int
    """How many will come."""
    given: Given | None = None
    """Where demonstrations are not sampled."""
    fingerprint: str | None = None
    """Of the run's parameters."""


def run(options: AuditOptions, console: Console) -> int:
    """Audit, and write ``audit.json``, ``audit.md`` and figures."""
    is_file = options.run is not None and options.run.is_file()
    if options.run is not None and not options.run.exists():
        raise SettingError(
            f"run must be a run of ape-jax train or a file of demonstrations; no {options.run}"
        )
    effort = attackers.QUICK if options.quick else Effort()
    if options.steps is not None:
        if is_file:
            raise SettingError(
                f"steps must be left out for a demonstration file; got {options.steps}"
            )
        if options.steps < 2:
            raise SettingError(f"steps must be at least 2; got {options.steps}")
        effort = effort.within(options.steps)
    everyone = [*attackers.ATTACKERS, *attackers.CONTINUOUS]
    names = everyone if options.observers == ALL else _names(options.observers)
    observers, skipped = attackers.choose(names, has_experts=not is_file)

    started = time.monotonic()
    with progress_bar(console) as progress:
        bar = progress.add_task("audit", total=None, returns="")

        def report(name, done, total):
            progress.update(
                bar, description=defences.LABELS[name], returns=f"training {done}/{total}"
            )

        subject = _subject(options, report)
        out = prepare(options.out)
        if subject.given is not None:
            effort = effort.within(subject.given.shown.action.shape[1])
        content = _content(subject, effort, skipped, options)
        points = _curve_points(effort) if "limited" in observers else []
        progress.update(bar, total=subject.num_ensembles * (1 + len(observers) + len(points)))
        code = 0
        try:
            for label, step in _audit(subject, effort, observers, points, content):
                progress.update(bar, description=label, returns=step, advance=1)
                for figure in FIGURES:
                    (out / figure).unlink(missing_ok=True)
                content["wall_seconds"] = time.monotonic() - started
                content["complete"] = progress.finished
                write_json(out / "audit.json", content)
        except KeyboardInterrupt:
            if not content["defences"]:
                raise
            code = INTERRUPTED
        write_text(out / "audit.md", audit_table.markdown(content))
        _draw(content, out)
    _show(content, out, code)
    return code


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _subject(options: AuditOptions, report) -> Subject:
    """What the options name.

    Raises:
      SettingError: it cannot be audited.
    """
    if options.seeds is not None and options.seeds < 1:
        raise SettingError(f"seeds must be at least 1; got {options.seeds}")
    if options.run is None:
        seeds = options.seeds or (3 if options.quick else 10)
        return _made(options, *recipe("tabular"), 0, seeds, report)
    if options.run.is_file():
        if options.defences is not None:
            raise SettingError("defences cannot be made beside a demonstration file; give a run")
        return _file(options.run, options.seeds or 5)
    config, task, params = checkpoint.load_run(options.run)
    if task.networks.action_bounds is not None:
        raise SettingError(
            f"run must have discrete actions; those of {options.run} are continuous, which audit "
            "cannot score. Use ape-jax suite, or observers.MeanAction and the like in Python"
        )
    seeds = options.seeds or config.seeds
    if seeds > config.seeds:
        raise SettingError(
            f"seeds must be at most the {config.seeds} of the run; got {seeds}. "
            f"Train with --seeds {seeds}"
        )
    heads = jax.tree.map(lambda x: x[:seeds], params.heads)
    settings = (config.train, config.hypers, config.first_seed, seeds)
    subject = _made(options, *settings, report, (task, heads))
    return subject._replace(fingerprint=fingerprint(params))


def _made(
    options: AuditOptions,
    config: TrainConfig,
    hypers: Hypers,
    first_seed: int,
    seeds: int,
    report,
    trained=None,
) -> Subject:
    """A run's ensemble and the defences to compare with."""
    if options.quick:
        config = dataclasses.replace(config, num_updates=min(config.num_updates, QUICK_UPDATES))
    house = Defences(config, hypers, seed_keys(first_seed, seeds), report)
    if options.defences is None:
        chosen = [] if trained else house.available
    elif options.defences == ALL:
        chosen = house.available
    else:
        chosen = _names(options.defences)
        house.check(chosen)
    if not chosen and not trained:
        raise SettingError("defences must hold one where there is no run; got none")

    def ensembles():
        if trained:
            task, heads = trained
            yield house.adopt("run", task.networks, heads)
        for name in chosen:
            yield house.make(name)

    keys = seed_keys(first_seed, seeds, EVALUATE)
    return Subject(house.task, keys, ensembles(), len(chosen) + bool(trained))


def _file(path: Path, seeds: int) -> Subject:
    """A file of demonstrations in place of an ensemble."""
    file = demonstration_files.load(path)
    env, params = envs.make(file.env_id, envs.parse_overrides(file.env_param))
    if not isinstance(env.action_space(params), spaces.Discrete):
        raise SettingError(
            f"run must hold discrete actions; those in {path} are continuous, which audit cannot "
            "score. Fit observers.MeanAction or observers.MixtureDensityNetwork in Python instead"
        )
    space = env.observation_space(params)
    head: PGHeadName = "conv" if len(space.shape) == 3 else "mlp"
    if isinstance(space, spaces.Discrete):
        head = "tabular"
    task = make_task(PGConfig(env=file.env_id, env_param=file.env_param, num_experts=1, head=head))
    given, kept = collect.hold_out(file.demonstrations)
    samples = [collect.resample(given, seed) for seed in range(seeds)]
    everything = collect.complete_returns(file.demonstrations)
    returns = [collect.complete_returns(sample) for sample in samples]
    # A sample of very few steps may hold no complete episode.
    pe_return = np.array([np.mean(some if len(some) else everything) for some in returns])
    shown = jax.tree.map(lambda *x: jnp.stack(x), *samples)
    held_out = jax.tree.map(lambda x: jnp.broadcast_to(x, (seeds, *x.shape)), kept)
    keys = seed_keys(0, seeds, EVALUATE)
    ensembles = iter([Ensemble("demonstrations", 0, None)])
    return Subject(task, keys, ensembles, 1, Given(shown, held_out, pe_return))


def _content(
    subject: Subject, effort: Effort, skipped: dict[str, str], options: AuditOptions
) -> dict:
    """``audit.json`` before the first row."""
    asked = dataclasses.asdict(options)
    task = subject.task
    random_return = evaluation.expected_return(
        task.world,
        evaluation.random_policy(task.world),
        jax.random.fold_in(subject.keys[0], RANDOM),
    )
    optimal_return = None
    if task.world.mdp is not None:
        optimal = tabular.optimal_policy(task.world.mdp)
        optimal_return = float(tabular.policy_return(task.world.mdp, optimal))
    return {
        "env": task.config.env,
        "horizon": task.world.horizon,
        "fingerprint": subject.fingerprint,
        "options": {name: asked[name] for name in asked if name not in ("run", "out")},
        "complete": False,
        "seeds": len(subject.keys),
        "num_steps": effort.num_steps,
        "random_return": float(random_return),
        "optimal_return": optimal_return,
        "rows": [],
        "defences": [],
        "curves": [],
        "skipped": skipped,
        "wall_seconds": 0.0,
    }


def _audit(
    subject: Subject,
    effort: Effort,
    observers: list[str],
    points: list[tuple[str, int]],
    content: dict,
) -> Iterator[tuple[str, str]]:
    """Fill the content, ensemble by ensemble; yields what was just done."""
    auditor = Auditor(subject.task, effort)
    keys_shown, keys_held_out, keys_attack, keys_measure = (
        jax.vmap(jax.random.fold_in, (0, None))(subject.keys, purpose)
        for purpose in (SHOWN, HELD_OUT, ATTACK, MEASURE)
    )
    summarise = interval if subject.given is None else percentiles
    for ensemble in subject.ensembles:
        name, heads = ensemble.name, ensemble.heads
        label = defences.LABELS.get(name, name)
        if subject.given is not None:
            shown, held_out, pe_return = subject.given
            content["defences"].append(audit_table.file_defence_json(name, label, pe_return))
        else:
            shown = auditor.demonstrate(keys_shown, heads, effort.num_steps)
            held_out = auditor.demonstrate(keys_held_out, heads, HELD_OUT_STEPS)
            measures = auditor.measure(keys_measure, heads, held_out)
            pe_return = np.mean(np.asarray(measures.experts, np.float64), axis=1)
            content["defences"].append(
                audit_table.defence_json(ensemble, label, measures, content["optimal_return"])
            )
        yield label, "demonstrations"
        for observer in observers:
            sees = attackers.ATTACKERS[observer].sees(effort)
            outcomes = auditor.attack(observer, keys_attack, heads, shown, held_out)
            for deployment, outcome in outcomes.items():
                content["rows"].append(
                    audit_table.row_json(
                        *(name, observer, sees, deployment, outcome),
                        *(pe_return, content["random_return"], summarise),
                    )
                )
            yield label, observer
        for axis, value in points:
            num_steps, width = (
                (value, max(effort.curve_widths))
                if axis == "num_steps"
                else (effort.num_steps, value)
            )
            returns = auditor.limited(num_steps, width, keys_attack, shown)
            for deployment, clone_return in returns.items():
                content["curves"].append(
                    {
                        "defence": name,
                        "axis": axis,
                        "value": value,
                        "deployment": deployment,
                        "clone_return": summarise(clone_return),
                    }
                )
            yield label, f"{axis} {value}"


def _curve_points(effort: Effort) -> list[tuple[str, int]]:
    """What the curves of limited observers are drawn over."""
    steps = [("num_steps", value) for value in effort.curve_steps]
    return steps + [("width", value) for value in effort.curve_widths]


def _draw(content: dict, out: Path) -> None:
    """The figures of what is there."""
    if content["rows"]:
        plotting.save_figure(plotting.observer_bars(content), out / FIGURES[0])
    if content["curves"]:
        plotting.save_figure(plotting.limited_curves(content), out / FIGURES[1])
    if any(defence["posterior_entropy"] for defence in content["defences"]):
        plotting.save_figure(plotting.posterior_entropy(content), out / FIGURES[2])


def _show(content: dict, out: Path, code: int) -> None:
    stdout = Console()
    for defence in content["defences"]:
        lines = audit_table.defence_lines(content, defence["name"], wide=False)
        if lines:
            title = audit_table.defence_title(defence)
            stdout.print(
                tables.rich_table(title, audit_table.NARROW_HEADER, lines, audit_table.TEXT_COLUMNS)
            )
    say(stdout, audit_table.EXPLANATION)
    for name, reason in content["skipped"].items():
        say(stdout, f"skipped: {name} {reason}")
    state = "" if code == 0 else "interrupted; what is finished is saved. "
    say(stdout, f"{state}{content['wall_seconds']:.0f} s; files in {out}")
