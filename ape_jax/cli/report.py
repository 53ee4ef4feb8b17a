"""``ape-jax report``: a run as one page of HTML."""

import dataclasses
import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import jax
import matplotlib
import numpy as np
import tyro
from rich.console import Console

import ape_jax
from ape_jax.algorithms.task import Task
from ape_jax.cli import audit
from ape_jax.cli.output import prepare, say
from ape_jax.cli.sweep import SweepOptions
from ape_jax.config import RunConfig
from ape_jax.demonstrations import collect
from ape_jax.envs.gridworld import GridWorld
from ape_jax.evaluation import returns as evaluation
from ape_jax.networks import EnsembleParams
from ape_jax.observers import TabularCloning
from ape_jax.reporting import html
from ape_jax.runs import checkpoint, metrics
from ape_jax.training.trainer import DEMONSTRATE, seed_keys
from ape_jax.types import RunError, SettingError


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """Write what is known of a finished run as one page of HTML, which needs nothing else.

    A run that was never audited is audited first, as by audit RUN --quick --out RUN/audit.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Directory of the run."""
    audit: Path | None = None
    """Directory of an audit of this run; RUN/audit, if not given."""
    sweep: Path | None = None
    """Directory of a sweep in the same environment; RUN/sweep if there is one, if not given."""
    out: Path | None = None
    """The page; html.html in the run, if not given."""


DEMONSTRATED_STEPS = 100_000
"""Behind the clones that are drawn on the grid."""

_SUMMARY = {
    *("pe_return", "expert_returns", "greedy_experts", "mixture", "random_return", "random_std"),
    *("dead_experts", "evaluation", "fingerprint", "train_seconds", "num_updates"),
}
_AUDIT = {
    *("env", "horizon", "seeds", "num_steps", "random_return", "optimal_return", "rows"),
    *("defences", "skipped", "wall_seconds", "fingerprint", "complete", "options"),
}
_ROW = {
    *("defence", "observer", "deployment", "sees", "clone_return", "fraction", "agreement"),
}
_SWEEP = {"env", "head", "num_experts", "horizon", "seeds", "num_updates", "points"}
_POINT = {"observer", "training", "beta", "pe_return", "clone_return"}


def run(options: ReportOptions, console: Console) -> int:
    """Check, audit where that was not done, draw, write."""
    out = options.out or options.run / "report.html"
    if out.suffix != ".html":
        raise SettingError(f"out must end in .html; got {out}")
    if out.is_dir():
        raise SettingError(f"out must be a file; got the directory {out}")
    config, task, params = checkpoint.load_run(options.run)
    summary = _read("run", options.run / "summary.json", _SUMMARY)
    updates = metrics.read_updates(options.run / "metrics.jsonl")
    if len(updates) != summary["num_updates"]:
        raise SettingError(
            f"run must hold the metrics of all {summary['num_updates']} updates; metrics.jsonl in "
            f"{options.run} has {len(updates)}"
        )
    sweep, audited = _sweep(options, config, task), None
    prepare(out.parent, "file")
    if task.networks.action_bounds is None or options.audit is not None:
        folder = options.audit or options.run / "audit"
        if options.audit is None and not _is_complete(folder):
            quick = audit.AuditOptions(run=options.run, quick=True, out=folder)
            code = audit.run(quick, console)
            if code:
                return code
        audited = _audit(options, folder, config, metrics.fingerprint(params))

    matplotlib.use("Agg")
    page = html.render(
        html.Sources(
            name=options.run.resolve().name,
            config=config,
            summary=summary,
            updates=updates,
            audit=audited,
            sweep=sweep,
            policies=_policies(config, task, params),
            facts=_facts(options.run, summary, audited),
            commands=_commands(options, config, audited, sweep),
        )
    )
    try:
        metrics.write_text(out, page)
    except OSError as error:
        raise RunError(f"the page could not be written: {error}") from None
    say(Console(), f"report: {out}")
    return 0


_SUMMARISED = {"pe_return", "clone_return", "agreement"}
"""Names whose values are means with intervals."""


def _read(option: str, path: Path, names: set[str], rows: Iterable[tuple[str, set[str]]] = ()):
    """The content of a JSON file that holds these names, and lists whose entries hold theirs.

    Raises:
      SettingError: it does not.
    """
    command = "train" if option == "run" else option
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise SettingError(
            f"{option} must be a directory that ape-jax {command} made, to its end; {path} is not "
            "readable"
        ) from None
    except ValueError:
        raise SettingError(
            f"{option} must hold files as they were written; {path} is not"
        ) from None
    sound = isinstance(content, dict) and content.keys() >= names
    for name, keys in rows:
        entries = content[name] if sound else None
        sound = isinstance(entries, list) and all(
            isinstance(entry, dict)
            and entry.keys() >= keys
            and all(isinstance(entry[key], dict) for key in keys & _SUMMARISED)
            for entry in entries
        )
    if not sound:
        raise SettingError(
            f"{option} must be of this version of ape_jax; {path} lacks what it needs. Make it "
            f"again with ape-jax {command}"
        )
    return content


def _is_complete(folder: Path) -> bool:
    """Whether an audit is there that went to its end, or one that does not say."""
    path = folder / "audit.json"
    return path.exists() and _read("audit", path, set()).get("complete", True)


def _audit(options: ReportOptions, folder: Path, config: RunConfig, fingerprint: str) -> dict:
    """The audit, which has to be of this run.

    Raises:
      SettingError: it is not.
    """
    path = folder / "audit.json"
    keys = {"name", "label", "pe_return", "floor"}
    content = _read("audit", path, _AUDIT, [("rows", _ROW), ("defences", keys)])
    if content["fingerprint"] != fingerprint or content["seeds"] > config.seeds:
        fix = (
            "name that of this one" if options.audit else "delete it, or name another with --audit"
        )
        raise SettingError(
            f"audit must be of the run that is reported; {path} is of other parameters than those "
            f"in {options.run}. Make it again with ape-jax audit, or {fix}"
        )
    return content


def _sweep(options: ReportOptions, config: RunConfig, task: Task) -> dict | None:
    folder = options.sweep or options.run / "sweep"
    if options.sweep is None and not folder.exists():
        return None
    content = _read("sweep", folder / "sweep.json", _SWEEP, [("points", _POINT)])
    own = (config.train.env, config.train.head, config.train.num_experts, task.world.horizon)
    for name, value in zip(("env", "head", "num_experts", "horizon"), own, strict=True):
        if content[name] != value:
            raise SettingError(
                f"sweep must be of the run's {name}, {value}; that in {folder} is of "
                f"{content[name]}. Leave it out, or name another"
            )
    return content


def _policies(config: RunConfig, task: Task, params: EnsembleParams) -> html.Policies | None:
    """Experts, observers and clones of the first seed, where there is a grid to draw them on."""
    if not isinstance(task.world.env, GridWorld) or task.world.mdp is None:
        return None
    heads = jax.tree.map(lambda x: x[0], params.heads)
    num_states, num_actions = task.world.mdp.reward.shape

    @jax.jit
    def clones(key):
        key_collect, key_fit = jax.random.split(key)
        shown, _ = collect.collect(key_collect, task, heads, DEMONSTRATED_STEPS)
        clone = TabularCloning(num_states, num_actions).fit(key_fit, shown)
        policies = (clone, evaluation.greedy(clone))
        return [evaluation.policy_table(policy, num_states) for policy in policies]

    sampled, greedy = clones(seed_keys(config.first_seed, 1, DEMONSTRATE)[0])
    experts = np.exp(task.networks.tabulate_experts(heads))
    observers = {
        "mixture π_o": experts.mean(axis=0),
        "clone, sampled": np.asarray(sampled),
        "clone, greedy": np.asarray(greedy),
    }
    return html.Policies(
        *(task.world.env, task.world.mdp, config.first_seed, DEMONSTRATED_STEPS), experts, observers
    )


def _facts(run: Path, summary: dict, audited: dict | None) -> dict[str, str]:
    manifest = checkpoint.verify(checkpoint.folder_of(run) / checkpoint.FINAL)
    device = jax.devices()[0]
    facts = {
        "trained with": f"ape_jax {manifest['version']}",
        "time of training": f"{summary['train_seconds']:,.0f} s",
    }
    if audited is not None:
        facts["time of the audit"] = f"{audited['wall_seconds']:,.0f} s"
    return facts | {
        "reported with": f"ape_jax {ape_jax.__version__}, jax {jax.__version__}, "
        f"{device.platform} ({device.device_kind})",
        "fingerprint of the parameters": summary["fingerprint"],
    }


def _commands(
    options: ReportOptions, config: RunConfig, audited: dict | None, sweep: dict | None
) -> dict[str, str]:
    run, commands = str(options.run), {}
    commands["the run"] = html.train_command(config, run)
    if audited is not None:
        flags = []
        for name, value in audited["options"].items():
            if value != getattr(audit.AuditOptions, name, None):
                flags += [f"--{name}"] if value is True else [f"--{name}", str(value)]
        folder = str(options.audit or options.run / "audit")
        commands["the audit"] = shlex.join(["ape-jax", "audit", run, *flags, "--out", folder])
    flags = []
    for name in ("audit", "sweep", "out"):
        value = getattr(options, name)
        if value is not None:
            flags += [f"--{name}", str(value)]
    commands["this report"] = shlex.join(["ape-jax", "report", run, *flags])
    if sweep is None and config.train.head != "gaussian" and not config.train.env_param:
        flags = []
        for name in ("env", "head", "num_experts"):
            value = getattr(config.train, name)
            if value != getattr(SweepOptions, name):
                flags += [f"--{name.replace('_', '-')}", str(value)]
        folder = str(options.run / "sweep")
        commands["the sweep"] = shlex.join(["ape-jax", "sweep", *flags, "--out", folder])
    return commands
