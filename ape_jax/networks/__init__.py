"""Flax modules of one expert, ensembles of them, and the policies that they make."""

from ape_jax.networks.ensemble import EnsembleParams, Networks, make_networks, with_statistics
from ape_jax.networks.modules import MLP, Conv, GaussianHead, Normalize, Table
from ape_jax.networks.policies import (
    HeadPolicy,
    LearnedWeights,
    MixturePolicy,
    PooledPolicy,
    UniformWeights,
    observer_policy,
    tabulate_ensemble,
)

__all__ = [
    "MLP",
    "Conv",
    "EnsembleParams",
    "GaussianHead",
    "HeadPolicy",
    "LearnedWeights",
    "MixturePolicy",
    "Networks",
    "Normalize",
    "PooledPolicy",
    "Table",
    "UniformWeights",
    "make_networks",
    "observer_policy",
    "tabulate_ensemble",
    "with_statistics",
]
