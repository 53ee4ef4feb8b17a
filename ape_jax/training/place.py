"""Where a run is computed."""

from typing import NamedTuple


class Cluster(NamedTuple):
    """Addresses with which a process finds the others; ``jax.distributed`` detects what is None."""

    coordinator: str | None = None
    """Address host:port of process 0."""
    num_processes: int | None = None
    process_id: int | None = None
    """Number of this process, from 0."""


class Place(NamedTuple):
    """Where a run is computed."""

    num_devices: int | None = None
    """Devices of each process; None takes as many as divide the work evenly."""
    cluster: Cluster | None = None
