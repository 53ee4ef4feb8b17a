"""Programs compiled for devices that this machine does not have, and what they will cost there.

Import it before JAX: it keeps JAX from looking for devices.
"""

import json
import os
import subprocess
import sys

os.environ.update(
    {
        "JAX_PLATFORMS": "cpu",
        # libtpu asks the machine that it runs on, unless it is told that this is a host of TPUs.
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
    command = [sys.executable, "-m", "benchmarks.aot", program, target]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
