"""Flax modules of one expert, and ensembles of them."""

from ape_jax.networks.ensemble import EnsembleParams, Networks, make_networks, with_statistics
from ape_jax.networks.modules import MLP, Conv, GaussianHead, Normalize, Table

__all__ = [
    "MLP",
    "Conv",
    "EnsembleParams",
    "GaussianHead",
    "Networks",
    "Normalize",
    "Table",
    "make_networks",
    "with_statistics",
]
