"""Devices: how seeds and environments are spread over them, on one machine or several."""

import contextlib
import math
import socket
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.extend import backend
from jax.sharding import Mesh

from ape_jax.types import SettingError

SEEDS, ENVIRONMENTS = "seeds", "environments"
"""Axes of the mesh. Seeds train apart; places along the other axis average their gradients."""

CONNECT_SECONDS = 30
"""Patience with process 0 at the start."""
HEARTBEAT_SECONDS = 10
"""Silence after which a process counts as dead."""


def make_mesh(
    num_seeds: int, envs_per_expert: int, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Spread seeds over as many devices as divide them evenly, and environments over the rest.

    Args:
      num_seeds: K.
      envs_per_expert: B of the whole run.
      devices: all of these are used; as many of this process's as can be if None.

    Raises:
      SettingError: environments that do not divide evenly over the devices asked for.
    """
    if devices is None:
        devices = jax.devices()
        while envs_per_expert % (len(devices) // math.gcd(num_seeds, len(devices))):
            devices = devices[:-1]
    for_seeds = math.gcd(num_seeds, len(devices))
    for_envs = len(devices) // for_seeds
    if envs_per_expert % for_envs:
        more = -(-envs_per_expert // for_envs) * for_envs
        raise SettingError(
            f"envs_per_expert must be divisible by {for_envs}, the devices that share a seed's "
            f"environments ({len(devices)} devices, {num_seeds} seed(s)); got {envs_per_expert}. "
            f"Choose {more}, or another number of devices"
        )
    return Mesh(np.array(devices).reshape(for_seeds, for_envs), (SEEDS, ENVIRONMENTS))


class Cluster(NamedTuple):
    """How a process finds the others of its run; None is left to ``jax.distributed`` to detect."""

    coordinator: str | None = None
    """host:port of process 0."""
    num_processes: int | None = None
    """Processes in all; None is found by itself."""
    process_id: int | None = None
    """Number of this process, from 0; None is found by itself."""


def start(
    num_devices: int | None = None, cluster: Cluster | None = None
) -> list[jax.Device] | None:
    """The devices to train on, of all processes that take part; None leaves the choice.

    To be called before anything else is computed: a CPU is divided into devices, and processes are
    joined, only while JAX is at rest. Arrays made earlier do not outlive it.

    Args:
      num_devices: of each process; None takes all that it has. A CPU is as many devices as are
        asked for; they share its cores.
      cluster: the run's other processes; None where there are none.

    Raises:
      SettingError: there are fewer devices, or not all is known to reach the other processes, or
        process 0 does not answer. A process that fails to come, or is lost later, ends the others
        with a message of JAX's runtime.
    """
    if num_devices is not None and num_devices < 1:
        raise SettingError(f"devices must be at least 1; got {num_devices}")
    divides = num_devices is not None and _is_cpu() and len(jax.local_devices()) != num_devices
    if cluster is not None or divides:
        backend.clear_backends()
    if divides:
        jax.config.update("jax_num_cpu_devices", num_devices)
    if cluster is not None:
        _connect(cluster)
    local = jax.local_devices()
    if num_devices is None:
        return None if cluster is None else jax.devices()
    if num_devices > len(local):
        raise SettingError(
            f"devices must be at most {len(local)}, the {local[0].device_kind} devices that are "
            f"here; got {num_devices}"
        )
    chosen: list[jax.Device] = []
    for process in range(jax.process_count()):
        chosen += [d for d in jax.devices() if d.process_index == process][:num_devices]
    return chosen


def leave() -> None:
    """Part from the other processes: what follows computes alone, without arrays made before."""
    with contextlib.suppress(RuntimeError):  # They may be gone; what was computed is here.
        jax.distributed.shutdown()
    backend.clear_backends()


def _is_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _connect(cluster: Cluster) -> None:
    coordinator, num_processes, process_id = cluster
    if coordinator is not None:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdigit():
            raise SettingError(f"coordinator must be host:port; got {coordinator!r}")
        if not 0 <= (process_id or 0) < (num_processes or math.inf):
            raise SettingError(
                "process_id must be at least 0 and below num_processes; "
                f"got {process_id} of {num_processes}"
            )
        if process_id:  # The runtime would abort, with a dump of its stack.
            _wait_for(host, int(port))
    try:
        jax.distributed.initialize(
            *cluster,
            initialization_timeout=CONNECT_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=CONNECT_SECONDS,
        )
    except ValueError as error:
        raise SettingError(
            "distributed must know --coordinator, --num-processes and --process-id, or run on a "
            f"cluster that jax detects, such as SLURM; got {coordinator}, {num_processes} and "
            f"{process_id} ({error})"
        ) from None


def _wait_for(host: str, port: int) -> None:
    deadline = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline or isinstance(error, socket.gaierror):
                raise SettingError(
                    f"coordinator must answer within {CONNECT_SECONDS} s; {host}:{port} does not "
                    f"({error}). Start process 0 there, or name its address with --coordinator"
                ) from None
        time.sleep(0.5)
