"""Devices: how seeds and environments are spread over them, on one machine or several."""

import contextlib
import math
import socket
import time
from collections.abc import Sequence

import jax
import numpy as np
from jax.extend import backend
from jax.sharding import Mesh

from ape_jax.config import TrainConfig
from ape_jax.training.place import Cluster
from ape_jax.types import SettingError

SEEDS, ENVIRONMENTS = "seeds", "environments"
"""Axes of the device mesh. Seeds train independently; devices along the second axis hold parts of
one seed's environments and average their gradients."""

CONNECT_SECONDS = 30
"""Time that a process waits for process 0 at the start."""
HEARTBEAT_SECONDS = 10
"""Time after which a silent process counts as lost."""
SHUTDOWN_SECONDS = 300
"""Time that processes wait at the end for process 0, which saves the run."""


def make_mesh(
    config: TrainConfig, num_seeds: int, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Spread seeds over as many devices as divide them evenly, and environments over the rest.

    Where an algorithm keeps environments in its state, they stay on the device of their seed. All
    given devices are used; if None, as many of all devices as divide evenly.

    Raises:
      SettingError: seeds or environments do not divide evenly over the devices.
    """
    num_envs = config.envs_per_expert if config.spreads_environments else 1
    if devices is None:
        devices = jax.devices()
        while num_envs % (len(devices) // math.gcd(num_seeds, len(devices))):
            devices = devices[:-1]
    for_seeds = math.gcd(num_seeds, len(devices))
    for_envs = len(devices) // for_seeds
    if num_envs % for_envs and not config.spreads_environments:
        raise SettingError(
            f"seeds must be divisible by the {len(devices)} devices with algorithm="
            f"{config.algorithm}, which spreads seeds alone; got {num_seeds}. Choose another "
            "number of either"
        )
    if num_envs % for_envs:
        raise SettingError(
            f"envs_per_expert must be divisible by {for_envs}, the devices that share a seed's "
            f"environments ({len(devices)} devices, {num_seeds} seed(s)); got {num_envs}. "
            f"Choose {-(-num_envs // for_envs) * for_envs}, or another number of devices"
        )
    return Mesh(np.array(devices).reshape(for_seeds, for_envs), (SEEDS, ENVIRONMENTS))


def start(
    num_devices: int | None = None, cluster: Cluster | None = None
) -> list[jax.Device] | None:
    """Choose the devices to train on, of all processes that take part; None leaves the choice open.

    Call it before anything else is computed: JAX divides a CPU into devices and joins processes
    only before its first computation. Arrays that were made earlier are lost. A CPU becomes as many
    devices as are asked for; they share its cores. The arguments are those of ``Place``.

    Raises:
      SettingError: there are fewer devices, an address or number is missing, or process 0 does not
        answer. If another process does not start, or is lost later, JAX's runtime ends all
        processes with a message of its own.
    """
    if num_devices is not None and num_devices < 1:
        raise SettingError(f"devices must be at least 1; got {num_devices}")
    is_cpu = jax.default_backend() == "cpu"
    divides = num_devices is not None and is_cpu and len(jax.local_devices()) != num_devices
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
            f"devices must be at most {len(local)}, the {local[0].device_kind} devices of "
            f"this machine; got {num_devices}"
        )
    chosen: list[jax.Device] = []
    for process in range(jax.process_count()):
        chosen += [d for d in jax.devices() if d.process_index == process][:num_devices]
    return chosen


def leave() -> None:
    """Leave the other processes and compute alone; arrays that were made before are lost."""
    with contextlib.suppress(RuntimeError):  # The others may have ended already.
        jax.distributed.shutdown()
    backend.clear_backends()


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
        if process_id:  # If process 0 did not answer, the runtime would abort with a stack dump.
            _wait_for(host, int(port))
    try:
        jax.distributed.initialize(
            *cluster,
            initialization_timeout=CONNECT_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except ValueError as error:
        raise SettingError(
            "distributed needs --coordinator, --num-processes and --process-id, or a cluster that "
            f"jax detects, such as SLURM; got {coordinator}, {num_processes} and "
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
                    f"({error}). Start process 0 there, or give its address with --coordinator"
                ) from None
        time.sleep(0.5)
