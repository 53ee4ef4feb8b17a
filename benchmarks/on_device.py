"""Everything worth knowing on a new accelerator, in one command of about twenty minutes.

Each section runs in a process of its own, with a limit on its time, so that no failure hides the
others. The file is written after each of them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.profiler import ProfileData
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ape_jax import algorithms, presets
from ape_jax.algorithms import pg
from ape_jax.algorithms.task import make_task
from ape_jax.config import PGConfig, PGHypers
from ape_jax.core import platform, tabular
from benchmarks import common

TESTS = (
    "tests/core",
    "tests/test_tables.py",
    "tests/test_rollout.py",
    "tests/test_algorithms.py",
    "tests/test_gradient.py",
    "tests/test_exact.py",
    "tests/test_ppo.py",
    "tests/test_devices.py",
)
"""Tests of what is computed on the device, without those of files, pages and the command line."""
LIMITS = {"tests": 600, "parity": 120, "throughput": 300, "profile": 180, "kernel": 240}
"""Seconds that each section may take."""


def tests(quick: bool) -> dict:
    """The tests of numerical code, on this device."""
    chosen = TESTS[:1] if quick else TESTS
    environment = os.environ | {
        "JAX_PLATFORMS": f"{jax.config.jax_platforms or jax.default_backend()},cpu",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_FLAGS": "",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-n", "4", "-m", "not slow", *chosen]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"summary": lines[-1] if lines else done.stderr[-500:], "failed": failed}


def parity(quick: bool) -> dict:
    """The same updates here and on the CPU, each in its own forms; and exact returns."""
    del quick
    task, hypers = make_task(PGConfig(envs_per_expert=256)), PGHypers()
    places = ((jax.devices()[0], jax.default_backend()), (jax.devices("cpu")[0], "cpu"))
    uniform = jnp.full((100, 5), 0.2)
    found = []
    for device, name in places:
        with jax.default_device(device), platform.tracing_for(name):
            state = jax.jit(pg.create_state, static_argnums=1)(
                jax.random.key(0), task.networks, hypers
            )
            run = jax.jit(algorithms.updates, static_argnums=(0, 3))
            _, first = run(task, state, hypers, 1)
            later, _ = run(task, state, hypers, 10)
            exact = jax.jit(tabular.policy_return)(task.world.mdp, uniform)
        found.append(jax.device_get((first.expert_returns, later.params.heads, exact)))
    (returns, heads, exact), (cpu_returns, cpu_heads, cpu_exact) = found
    tables, cpu_tables = (
        np.concatenate(list(map(np.ravel, jax.tree.leaves(x)))) for x in (heads, cpu_heads)
    )
    return {
        "first_returns_are_equal": bool(np.allclose(returns, cpu_returns, rtol=1e-5)),
        "parameters_after_10_updates_differ_by": float(np.abs(tables - cpu_tables).max()),
        "exact_return": float(exact),
        "exact_return_on_the_cpu": float(cpu_exact),
        "exact_returns_differ_by": float(abs(exact - cpu_exact)),
    }


def throughput(quick: bool) -> dict:
    """Updates and steps a second by environments, by heads and by seeds side by side."""
    effort = common.QUICK if quick else common.FULL
    blocks = (64,) if quick else (64, 1024, 16384)
    sizes = [(head, block, None) for head in ("tabular", "mlp") for block in blocks]
    sizes += [("tabular", 64, seeds) for seeds in ((4,) if quick else (16, 128, 1024))]
    rows = []
    for head, block, seeds in sizes:
        config = PGConfig(head=head, envs_per_expert=block)
        ours = common.Ours(config, seeds=seeds)
        rate = common.rates({"ours": ours.work}, effort)["ours"]
        updates = rate.median * ours.chunk * (seeds or 1)
        steps = updates * algorithms.steps_per_update(make_task(config))
        rows.append(
            {
                "head": head,
                "envs_per_expert": block,
                "seeds": seeds or 1,
                "updates_per_second": updates,
                "steps_per_second": steps,
                "live_steps_per_second": updates * ours.live_steps() / (seeds or 1),
                "compile_seconds": ours.compile_seconds,
            }
        )
    return {"rows": rows}


def profile(quick: bool) -> dict:
    """Kernels of an update, the time in which the device works, and the bandwidth it reaches."""
    programs = {f"pg-tabular-{block}": PGConfig(envs_per_expert=block) for block in (64, 1024)}
    pairs = [(name, config, PGHypers()) for name, config in programs.items()]
    if not quick:
        run = presets.config("cartpole")
        pairs.append(("ppo-cartpole", run.train, run.hypers))
    return {"rows": [_profiled(*pair) for pair in pairs]}


def _profiled(name: str, config, hypers, count: int = 20) -> dict:
    task = make_task(config)
    state = jax.jit(lambda key: algorithms.init(key, task, hypers))(jax.random.key(0))
    update = jax.jit(lambda state: algorithms.update(task, state, hypers)).lower(state).compile()
    state, _ = jax.block_until_ready(update(state))
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        with jax.profiler.trace(folder):
            for _ in range(count):
                state, _ = update(state)
            jax.block_until_ready(state)
        seconds = time.perf_counter() - started
        recorded = next(Path(folder).rglob("*.xplane.pb"))
        planes = list(ProfileData.from_file(str(recorded)).planes)
    device = [plane for plane in planes if plane.name.startswith("/device:")]
    # A CPU has no plane of its own: its operations are among the threads of the host.
    lines = [line for plane in device or planes for line in plane.lines if _is_work(line, device)]
    events = [event for line in lines for event in line.events]
    busy = sum(event.duration_ns for event in events) / 1e9
    nbytes = float((update.cost_analysis() or {}).get("bytes accessed", 0.0))
    return {
        "program": name,
        "updates_per_second": count / seconds,
        "launches_per_update": len(events) / count,
        "busy_share": busy / seconds,
        "gigabytes_per_second": nbytes * count / busy / 1e9 if busy else None,
    }


def _is_work(line, on_device: bool) -> bool:
    return "Stream" in line.name if on_device else "XLA" in line.name or "tf_" in line.name


def kernel(quick: bool) -> dict:
    """The rollout as one kernel compared with the loop: the same visits, and updates a second."""
    effort, name = (common.QUICK if quick else common.FULL), jax.default_backend()
    rows = []
    for block in (4,) if quick or name == "cpu" else (64, 1024, 16384):
        config = PGConfig(envs_per_expert=block)
        task, key = make_task(config), jax.random.key(0)
        row: dict = {"envs_per_expert": block}
        returns = []
        for label, pallas in (("loop", False), ("kernel", True)):
            with platform.tracing_for(platform.FORMS[name]._replace(pallas=pallas, lanes=False)):
                state = pg.create_state(key, task.networks, PGHypers())
                _, metrics = jax.jit(algorithms.updates, static_argnums=(0, 3))(
                    task, state, PGHypers(), 1
                )
                returns.append(np.asarray(metrics.expert_returns))
                ours = common.Ours(config)
            rate = common.rates({label: ours.work}, effort)[label]
            row[f"{label}_updates_per_second"] = rate.median * ours.chunk
        row["first_returns_differ_by"] = float(np.abs(returns[0] - returns[1]).max())
        rows.append(row)
    return {"rows": rows}


SECTIONS: dict[str, Callable[[bool], dict]] = {
    "tests": tests,
    "parity": parity,
    "throughput": throughput,
    "profile": profile,
    "kernel": kernel,
}


def run_section(name: str, quick: bool) -> dict:
    """A section in a process of its own; what it found, or why it ended."""
    command = [sys.executable, "-m", "benchmarks.on_device", "--section", name]
    started = time.perf_counter()
    try:
        done = subprocess.run(
            [*command, "--quick"] if quick else command,
            capture_output=True,
            text=True,
            timeout=LIMITS[name],
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"stopped after {LIMITS[name]} s"}
    seconds = round(time.perf_counter() - started, 1)
    if done.returncode:
        return {"seconds": seconds, "error": done.stderr.strip()[-2000:]}
    return {"seconds": seconds} | json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Run all sections, write, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a first look, in some minutes")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON")
    parser.add_argument("--section", choices=SECTIONS, help="print one section alone")
    given = parser.parse_args()
    if given.section:
        print(json.dumps(SECTIONS[given.section](given.quick)))
        return
    if given.out is None:
        parser.error("--out is needed: the file that the results are written to")
    console = Console()
    result: dict = {"device": common.device(), "quick": given.quick, "sections": {}}
    table = Table("section", "seconds", "what it found", title=result["device"])
    with Progress(console=console, transient=True) as progress:
        for name in progress.track(list(SECTIONS), description="sections"):
            found = run_section(name, given.quick)
            result["sections"][name] = found
            common.write(result, given.out)
            seconds = str(found.pop("seconds", "–"))
            table.add_row(name, seconds, json.dumps(found, indent=1)[:1500])
    console.print(table)
    console.print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
