"""A training that is killed and resumed again and again, against one that is not disturbed.

Every kill is a SIGKILL at a random moment: most while it trains and saves, some while it starts.
At the end, parameters and metrics must equal those of the undisturbed run, to the bit.
"""

import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from ape_jax.runs.checkpoint import UNFINISHED, folder_of, newest_sound, saved_updates
from benchmarks import common

KILLS, UPDATES, SAVE_EVERY = 25, 8000, 20
SETTINGS = ["--envs-per-expert", "16", "--save-every", str(SAVE_EVERY), "--keep", "2"]
SECONDS = {"training": 1.0, "starting": 6.0}
"""Longest time until a kill: after the first new checkpoint, or after the start of the process."""


def command(*arguments: str) -> list[str]:
    """The command of a training without a live view."""
    program = "from ape_jax.cli import main; main()"
    return [sys.executable, "-c", program, "train", "--quiet", *arguments]


def undisturbed(run: Path, arguments: list[str]) -> None:
    """Train without a kill.

    Raises:
      RuntimeError: it failed.
    """
    done = subprocess.run(command(*arguments, "--out", str(run)), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the undisturbed run failed: {done.stderr}")


def num_lines(run: Path) -> int:
    """Number of updates whose metrics are written."""
    file = run / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def newest(run: Path) -> int:
    """Number of updates of the newest checkpoint; 0 if there is none."""
    return max(saved_updates(run), default=0)


def killed(run: Path, arguments: list[str], delay: float, starting: bool) -> dict | None:
    """Start or resume a training, and kill it; None if it finishes before.

    Args:
      run: its directory.
      arguments: those of a fresh run; a run that was started before has its own.
      delay: seconds until the kill.
      starting: whether they count from the start of the process, or from its first new checkpoint.
    """
    begun = (run / "config.yaml").exists()
    how = ["--resume", str(run)] if begun else [*arguments, "--out", str(run)]
    before = newest(run)
    child = subprocess.Popen(command(*how), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not starting and child.poll() is None and newest(run) == before:
        time.sleep(0.005)
    try:
        child.wait(delay)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGKILL)
        child.wait()
    if child.returncode == 0:
        return None
    if child.returncode != -signal.SIGKILL:
        raise RuntimeError(f"the run failed by itself, with exit code {child.returncode}")
    saved = newest_sound(run) or 0
    return {
        "starting": starting,
        "saving": not starting and any(folder_of(run).glob(f"*{UNFINISHED}")),
        "updates_done": num_lines(run),
        "updates_saved": saved,
        "updates_lost": max(num_lines(run) - saved, 0),
    }


def measure(kills: int, num_updates: int, seed: int = 0) -> dict:
    """Kill a training so many times, resume it to its end, and compare it with another."""
    rng = random.Random(seed)
    arguments = ["--num-updates", str(num_updates), *SETTINGS]
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        whole, run = Path(folder) / "whole", Path(folder) / "killed"
        undisturbed(whole, arguments)
        while len(rows) < kills:
            starting = rng.random() < 0.2
            delay = rng.uniform(0.0, SECONDS["starting" if starting else "training"])
            row = killed(run, arguments, delay, starting)
            if row is None:
                raise RuntimeError(f"the run was over after {len(rows)} kills; make it longer")
            rows.append(row)
        resumed = subprocess.run(command("--resume", str(run)), capture_output=True, text=True)
        prints = [
            json.loads((path / "summary.json").read_text())["fingerprint"] for path in (whole, run)
        ]
        metrics = [(path / "metrics.jsonl").read_bytes() for path in (whole, run)]
    return {
        "device": common.device(),
        "num_updates": num_updates,
        "save_every": SAVE_EVERY,
        "exit_code": resumed.returncode,
        "same_parameters": prints[0] == prints[1],
        "same_metrics": metrics[0] == metrics[1],
        "kills_while_saving": sum(row["saving"] for row in rows),
        "most_updates_lost": max(row["updates_lost"] for row in rows),
        "rows": rows,
    }


def draw(result: dict):
    """Updates done and saved at every kill."""
    figure, (panel,) = common.axes_of(1)
    kills = range(1, len(result["rows"]) + 1)
    for name, colour in (("updates_done", common.EAGER), ("updates_saved", common.OURS)):
        values = [row[name] for row in result["rows"]]
        panel.plot(
            kills, values, drawstyle="steps-post", color=colour, label=name.replace("_", " ")
        )
    panel.set_xlabel("kill")
    panel.legend()
    return figure


def main(arguments: list[str] | None = None) -> None:
    """Measure, write, print; exit code 1 if anything was lost."""
    out, effort, console = common.options(__doc__, arguments)
    full = effort == common.FULL
    with console.status("killing"):
        result = measure(KILLS, UPDATES) if full else measure(3, 2000)
    columns = {"saving": "saving", "starting": "starting", "done": "updates_done"}
    columns |= {"saved": "updates_saved", "lost": "updates_lost"}
    table = common.table_of(result["rows"], columns, "Kills")
    common.publish(result, draw(result), table, out, console)
    Console().print(
        f"same parameters: {result['same_parameters']}; same metrics: {result['same_metrics']}; "
        f"{result['kills_while_saving']} of {len(result['rows'])} kills while saving; "
        f"at most {result['most_updates_lost']} updates lost"
    )
    if not (result["same_parameters"] and result["same_metrics"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
