"""Programs compiled for devices that this machine does not have, and what they will cost there."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.aot import schedule

# Before JAX is imported: the plugins of the compilers would look for their devices.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "",  # They may be meant for the programs of this machine.
    # libtpu asks the machine that it runs on, unless it is told that this is a host of TPUs.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_ID": "0",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # Several processes may compile at once, because none holds a TPU.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""Variables of a process that compiles."""


def row_of(program: str, target: str) -> dict:
    """Compile a program for a target in a fresh process, and count what it costs.

    All numbers but the memory are those of one update.
    """
    # libtpu reads where to write its schedules when it is loaded.
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.aot", program, target, folder],
            env=os.environ | ENVIRONMENT | {"LIBTPU_INIT_ARGS": schedule.flags(folder)},
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            check=True,
        )
    return json.loads(done.stdout)
