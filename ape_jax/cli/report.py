"""``ape-jax report``: a run as one page of HTML."""

import shlex
from pathlib import Path

import jax
from rich.console import Console

import ape_jax
from ape_jax.algorithms.task import Task
from ape_jax.cli import audit
from ape_jax.cli.options import AuditOptions, ReportOptions
from ape_jax.cli.output import prepare, say
from ape_jax.config import RunConfig
from ape_jax.envs.gridworld import GridWorld
from ape_jax.evaluation import records, reproduce
from ape_jax.evaluation.audit_records import Audit
from ape_jax.evaluation.summary import Summary
from ape_jax.evaluation.sweep import Sweep
from ape_jax.reporting import html
from ape_jax.runs import checkpoint, manifest, metrics
from ape_jax.settings.audit import AuditSettings
from ape_jax.training.trainer import DEMONSTRATE, seed_keys
from ape_jax.types import SettingError

DEMONSTRATED_STEPS = 100_000
"""Demonstration steps behind the clones that are drawn on the grid."""


def run(options: ReportOptions, console: Console) -> int:
    """Read everything, audit where that was not done, draw, write."""
    out = options.out or options.run / "report.html"
    if out.suffix != ".html":
        raise SettingError(f"out must end in .html; got {out}")
    if out.is_dir():
        raise SettingError(f"out must be a file; got the directory {out}")
    config, task, params = checkpoint.load_run(options.run)
    summary = records.read(Summary, options.run / "summary.json")
    updates = metrics.read_updates(options.run / "metrics.jsonl")
    if len(updates) != summary.num_updates:
        raise SettingError(
            f"run must hold the metrics of all {summary.num_updates} updates; metrics.jsonl in "
            f"{options.run} has {len(updates)}"
        )
    sweep, audited, panels = _sweep(options, config, task), None, None
    prepare(out.parent, "file")
    if task.networks.action_bounds is None or options.audit is not None:
        path = (options.audit or options.run / "audit") / "audit.json"
        if options.audit is None and not (path.exists() and records.read(Audit, path).complete):
            quick = AuditOptions(AuditSettings(quick=True), options.run, path.parent)
            if code := audit.run(quick, console):
                return code
        audited = records.read(Audit, path)
        if audited.fingerprint != metrics.fingerprint(params) or audited.seeds > config.seeds:
            raise SettingError(
                f"audit must be of the run that is reported; {path} is of other parameters than "
                f"those in {options.run}. Make it again with ape-jax audit, or name another with "
                "--audit"
            )
    if isinstance(task.world.env, GridWorld) and task.world.mdp is not None:
        heads = jax.tree.map(lambda x: x[0], params.heads)
        key = seed_keys(config.first_seed, 1, DEMONSTRATE)[0]
        panels = reproduce.panels(task, heads, key, DEMONSTRATED_STEPS, with_network=False)
    sources = html.Sources(
        name=options.run.resolve().name,
        task=task,
        config=config,
        summary=summary,
        updates=updates,
        audit=audited,
        sweep=sweep,
        panels=panels,
        facts=_facts(options.run, summary, audited),
        commands=_commands(options),
    )
    metrics.write_text(out, html.render(sources))
    say(Console(), f"report: {out}")
    return 0


def _sweep(options: ReportOptions, config: RunConfig, task: Task) -> Sweep | None:
    """The sweep, if there is one; it must be in the run's environment."""
    folder = options.sweep or options.run / "sweep"
    if options.sweep is None and not folder.exists():
        return None
    found = records.read(Sweep, folder / "sweep.json")
    own = {name: getattr(config.train, name) for name in ("env", "head", "num_experts")}
    for name, value in (own | {"horizon": task.world.horizon}).items():
        if getattr(found, name) != value:
            raise SettingError(
                f"sweep must be of the run's {name}, {value}; that in {folder} is of "
                f"{getattr(found, name)}. Leave it out, or name another"
            )
    return found


def _facts(run: Path, summary: Summary, audited: Audit | None) -> dict[str, str]:
    content = manifest.verify(checkpoint.folder_of(run) / checkpoint.FINAL)
    device = jax.devices()[0]
    facts = {"trained with": f"ape_jax {content['version']}"}
    if summary.train_seconds is not None:
        facts["time of training"] = f"{summary.train_seconds:,.0f} s"
    if audited is not None:
        facts["time of the audit"] = f"{audited.wall_seconds:,.0f} s"
    return facts | {
        "reported with": f"ape_jax {ape_jax.__version__}, jax {jax.__version__}, "
        f"{device.platform} ({device.device_kind})",
        "fingerprint of the parameters": summary.fingerprint,
    }


def _commands(options: ReportOptions) -> dict[str, str]:
    """Commands that train the run again, and write this report again."""
    again = ["ape-jax", "report", str(options.run)]
    for name in ("audit", "sweep", "out"):
        if value := getattr(options, name):
            again += [f"--{name}", str(value)]
    config = str(options.run / "config.yaml")
    return {
        "the run": shlex.join(["ape-jax", "train", "--config", config, "--out", "NEW"]),
        "this report": shlex.join(again),
    }
