"""Devices to compile for, and the numbers with which costs become times.

Nothing of a device is needed: libtpu holds the compiler for TPUs, and the CUDA plugin of JAX takes
a description of a GPU.
"""

import dataclasses
import importlib.util
from typing import Literal

import jax
from jax.experimental import topologies

_H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
"""
"""The H100 SXM5 in XLA's text format: its published figures, and CUDA's limits for its kind."""


@dataclasses.dataclass(frozen=True)
class Target:
    """One or more chips of a kind."""

    platform: Literal["gpu", "tpu"]
    topology: str
    """Kind and grid of the chips, in the words of the compiler."""
    num_chips: int = 1
    clock: float = 0.0
    """Cycles a second of a TPU."""
    bandwidth: float = 0.0
    """Bytes a second of a GPU's memory."""

    def devices(self) -> list[jax.Device]:
        """Stand-ins for the chips, which a program can be compiled for."""
        if self.platform == "gpu":
            description = topologies.get_topology_desc(
                self.topology, "cuda", target_config=_H100, topology="1x1x1"
            )
        else:
            bounds = {"chips_per_host_bounds": (1, 1, 1)} if self.num_chips == 1 else {}
            description = topologies.get_topology_desc(
                platform="tpu", topology_name=self.topology, **bounds
            )
        return list(description.devices)

    @property
    def is_installed(self) -> bool:
        """Whether the compiler for it is there."""
        plugin = "libtpu" if self.platform == "tpu" else "jax_plugins.xla_cuda13"
        try:
            return importlib.util.find_spec(plugin) is not None
        except ModuleNotFoundError:
            return False


TARGETS = {
    "h100": Target("gpu", "h100", bandwidth=3.35e12),
    "v5e": Target("tpu", "v5e:1x1", clock=1.5e9),
    "v6e": Target("tpu", "v6e:1x1", clock=1.75e9),
    "v5e-4": Target("tpu", "v5e:2x2", num_chips=4, clock=1.5e9),
    "v5e-256": Target("tpu", "v5e:16x16", num_chips=256, clock=1.5e9),
}
"""Clocks follow from the published peaks: 4 units of 128 x 128 at 1.5 GHz are 197 TFLOP/s (v5e),
and 4 of 256 x 256 at 1.75 GHz are 918 TFLOP/s (v6e)."""
