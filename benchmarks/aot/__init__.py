"""Programs compiled for devices that this machine does not have, and what they will cost there.

Import it before JAX: it keeps JAX from looking for devices.
"""

import json
import os
import subprocess
import sys
import tempfile

from benchmarks.aot import schedule

os.environ.update(
    {
        "JAX_PLATFORMS": "cpu",
        # libtpu asks the machine that it runs on, unless it is told that this is a host of TPUs.
        # Several processes may compile at once, because none holds a TPU.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_ID": "0",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
)


def row_of(program: str, target: str) -> dict:
    """Compile a program for a target in a fresh process, and count what it costs.

    All numbers but the memory are those of one update.
    """
    # libtpu reads where to write its schedules when it is loaded.
    with tempfile.TemporaryDirectory() as folder:
        flags = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {schedule.flags(folder)}"
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.aot", program, target, folder],
            env=os.environ | {"LIBTPU_INIT_ARGS": flags.strip()},
            stdout=subprocess.PIPE,
            check=True,
        )
    return json.loads(done.stdout)
