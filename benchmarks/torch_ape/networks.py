"""Heads and critics: tables or MLPs over the cells, stacked, with no loop over networks."""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ape_jax.config import TrainConfig
from benchmarks.torch_ape import gridworld

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": torch.relu}


class Params(NamedTuple):
    """Weights of stacked networks. Of a table: the table. Of an MLP: embedding, then kernels."""

    heads: list[Tensor]
    """[E, S, A], or [E, S, H], …, [E, H, A]."""
    critics: list[Tensor]
    """[E + 1, S, 1], or [E + 1, S, H], …, [E + 1, H, 1]; V_c of every expert, and V_o last."""


def create_params(config: TrainConfig, generator: torch.Generator) -> Params:
    """Draw parameters as ``ape_jax`` does: the same laws, not the same numbers."""
    return Params(
        heads=_stack(config, config.num_experts, gridworld.NUM_ACTIONS, 1.0, generator),
        critics=_stack(config, config.num_experts + 1, 1, 0.0, generator),
    )


def _stack(
    config: TrainConfig, count: int, num_outputs: int, scale: float, generator: torch.Generator
) -> list[Tensor]:
    device = generator.device
    if config.head == "tabular":
        shape = (count, gridworld.NUM_CELLS, num_outputs)
        return [scale * torch.randn(shape, generator=generator, device=device)]
    widths = config.hidden_sizes
    shape = (count, gridworld.NUM_CELLS, widths[0])
    weights = [torch.randn(shape, generator=generator, device=device)]
    for fan_in, fan_out in itertools.pairwise(widths):
        deviation = 1 / math.sqrt(fan_in) / 0.87962566  # Of a normal cut at ±2 of these.
        kernels = torch.empty(count, fan_in, fan_out, device=device)
        bound = 2 * deviation
        nn.init.trunc_normal_(kernels, 0.0, deviation, -bound, bound, generator=generator)
        weights.append(kernels)
    outputs = torch.empty(count, widths[-1], num_outputs, device=device)
    for kernel in outputs:
        nn.init.orthogonal_(kernel, scale, generator=generator)
    return [*weights, outputs]


def outputs_at(weights: list[Tensor], cells: Tensor, activation: str) -> Tensor:
    """Outputs of K networks, each at its own cells [K, N]: [K, N, outputs]."""
    networks = torch.arange(len(weights[0]), device=cells.device)[:, None]
    return _layers(weights[0][networks, cells], weights[1:], activation)


def outputs_everywhere(weights: list[Tensor], activation: str) -> Tensor:
    """Outputs of K networks in every cell: [K, S, outputs]."""
    return _layers(weights[0], weights[1:], activation)


def _layers(hidden: Tensor, kernels: list[Tensor], activation: str) -> Tensor:
    for kernel in kernels:
        hidden = ACTIVATIONS[activation](hidden) @ kernel
    return hidden
