"""PG-APE as fast as PyTorch gets: a few compiled graphs, and CUDA graphs around them on a GPU.

What makes it fast, against ``eager``: policies are looked up in tables made once an update; experts
and observer act in one batch, by one uniform number a step; the loss is computed from how often
each action was taken in each cell and what it returned, which says all that the samples say; Adam
is part of the graph.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ape_jax.config import Hypers, TrainConfig
from benchmarks.torch_ape import gridworld, networks
from benchmarks.torch_ape.gridworld import NUM_ACTIONS, NUM_CELLS
from benchmarks.torch_ape.networks import Params
from benchmarks.torch_ape.objective import (
    Losses,
    check,
    learning_rate_share,
    uniform_log_weight,
)

STEPS_PER_GRAPH = 100
"""Steps of a rollout that are unrolled in one graph; a divisor of the horizon."""
WARM_UPS = 3
"""Updates on a GPU before one is captured."""


class Statistics(NamedTuple):
    """Inputs of the losses from episodes of P = E + 1 policies; the observer is the last one."""

    counts: Tensor
    """Live steps [P, S, A] that took the action in the cell."""
    returns: Tensor
    """Sums [P, S, A] of the returns to go of these steps."""
    squares: Tensor
    """Sums [2] of their squares: of all experts, and of the observer."""


class Trainer:
    """A training run of the penalised form with the uniform observer."""

    def __init__(
        self,
        config: TrainConfig,
        hypers: Hypers,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ):
        """Draw parameters; the first updates compile.

        Args:
          config: static settings; a world or an observer other than the paper's is refused.
          hypers: rates, β, gamma, entropy bonus, clipping norm.
          device: where everything lives.
          seed: of parameters and rollouts.

        Raises:
          SettingError: a setting that is not covered.
        """
        check(config, hypers)
        self.config, self.hypers = config, hypers
        self.generator = torch.Generator(device).manual_seed(seed)
        self.params = networks.create_params(config, self.generator)
        self.moments = [
            (torch.zeros_like(weights), torch.zeros_like(weights))
            for weights in (*self.params.heads, *self.params.critics)
        ]
        self.count = torch.zeros((), device=device)
        self.successors, self.rewards = lookups(config.num_experts, device)
        block = torch.arange(config.num_experts + 1, device=device)
        sizes = [config.envs_per_expert] * config.num_experts
        sizes.append(config.num_experts * config.envs_per_expert)
        self.blocks = block.repeat_interleave(torch.tensor(sizes, device=device)) * NUM_CELLS
        self.uniforms = torch.empty(gridworld.HORIZON, len(self.blocks), device=device)
        self.keys = torch.empty(
            gridworld.HORIZON, len(self.blocks), dtype=torch.int64, device=device
        )
        self.graph: torch.cuda.CUDAGraph | None = None
        self.metrics: dict[str, Tensor] = {}
        self.num_calls = 0

    def update(self) -> dict[str, Tensor]:
        """Collect, statistics, gradient, step; returns the mean returns of the episodes collected.

        On a GPU the next update overwrites them.
        """
        self.num_calls += 1
        if self.graph is None and self.uniforms.is_cuda and self.num_calls > WARM_UPS:
            self._capture()
        if self.graph is None:
            self.metrics = self._update()
        else:
            self.graph.replay()
        return self.metrics

    def _update(self) -> dict[str, Tensor]:
        self.uniforms.uniform_(generator=self.generator)
        places = self.blocks + gridworld.reset(len(self.blocks), self.generator)
        thresholds = compiled_thresholds(self.params.heads, self.config.activation)
        for first in range(0, gridworld.HORIZON, STEPS_PER_GRAPH):
            part = slice(first, first + STEPS_PER_GRAPH)
            places = compiled_act(
                places, self.uniforms[part], thresholds, self.successors, self.keys[part]
            )
        statistics = compiled_summarize(self.keys, self.rewards, self.hypers.gamma)
        return compiled_learn(
            self.params, self.moments, self.count, statistics, self.config, self.hypers
        )

    def _capture(self) -> None:
        """Record one update, which is not carried out, on the tensors that all updates use."""
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        self.graph.register_generator_state(self.generator)
        with torch.cuda.graph(self.graph):
            self.metrics = self._update()


def lookups(num_experts: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """The world of P = E + 1 policies side by side: a place is a cell of the policy that acts.

    Returns:
      Next places and rewards [P * S * A], both by key: place · A + action.
    """
    successors, rewards = gridworld.tables(device)
    offsets = torch.arange(num_experts + 1, device=device) * NUM_CELLS
    places = offsets[:, None, None] + successors
    return places.flatten(), rewards.flatten().repeat(num_experts + 1)


def log_probs_everywhere(heads: list[Tensor], activation: str) -> Tensor:
    """Log π(·|s) [P, S, A] of every expert, and of their uniform mixture."""
    experts = networks.outputs_everywhere(heads, activation).log_softmax(dim=-1)
    observer = (experts + uniform_log_weight(len(experts))).logsumexp(dim=0)
    return torch.cat([experts, observer[None]])


def thresholds(heads: list[Tensor], activation: str) -> Tensor:
    """P(action ≤ a) [P * S, A - 1] in every place; scaled, as their sum is not quite one."""
    cumulative = log_probs_everywhere(heads, activation).exp().cumsum(dim=-1).flatten(0, 1)
    return cumulative[:, :-1] / cumulative[:, -1:]


def act(
    places: Tensor, uniforms: Tensor, thresholds: Tensor, successors: Tensor, keys: Tensor
) -> Tensor:
    """Steps of all environments at once; actions invert the cumulative distribution.

    Args:
      places: where the agents stand [N].
      uniforms: numbers from [0, 1) that decide the actions [T, N].
      thresholds: P(action ≤ a) [P * S, A - 1].
      successors: next places by key [P * S * A].
      keys: filled with place · A + action of each step [T, N].

    Returns:
      The places after the steps.
    """
    taken = []
    for uniform in uniforms.unbind():
        actions = (thresholds[places] <= uniform[:, None]).sum(dim=-1)
        taken.append(places * NUM_ACTIONS + actions)
        places = successors[taken[-1]]
    keys.copy_(torch.stack(taken))
    return places


def summarize(keys: Tensor, rewards: Tensor, gamma: float) -> Statistics:
    """Statistics of episodes.

    Args:
      keys: place · A + action of each step [T, N]: the experts' blocks, then as many of the
        observer's. After its end an episode stays on the goal.
      rewards: by key [P * S * A]; zero on the goal.
      gamma: γ.
    """
    returns = discounted_returns(rewards[keys], gamma)
    index = keys.flatten()
    zeros = torch.zeros_like(rewards)
    counts = zeros.scatter_add(0, index, torch.ones_like(index, dtype=rewards.dtype))
    sums = zeros.scatter_add(0, index, returns.flatten())
    shape = (-1, NUM_CELLS, NUM_ACTIONS)
    squares = returns.square().sum(dim=0).view(2, -1).sum(dim=1)
    valid = counts.view(shape).index_fill(
        1, torch.tensor([gridworld.GOAL], device=keys.device), 0.0
    )
    return Statistics(valid, sums.view(shape), squares)


def discounted_returns(rewards: Tensor, gamma: float) -> Tensor:
    """Returns to go of rewards [T, N], by doubling how far each looks ahead."""
    returns, ahead = rewards, 1
    while ahead < len(rewards):
        returns = returns + gamma**ahead * pad(returns[ahead:], (0, 0, 0, ahead))
        ahead *= 2
    return returns


def losses(params: Params, statistics: Statistics, config: TrainConfig, hypers: Hypers) -> Losses:
    """Parts of the loss, the same as ``eager.losses`` on the episodes of the statistics."""
    log_probs = log_probs_everywhere(params.heads, config.activation)
    values = networks.outputs_everywhere(params.critics, config.activation)
    # The observer's targets are −β times its returns.
    scale = torch.ones_like(values)
    scale[-1] = -hypers.beta
    targets, visits = scale * statistics.returns, statistics.counts.sum(dim=-1, keepdim=True)
    advantages = targets - statistics.counts * values.detach()
    policy = -(log_probs * advantages).sum(dim=(1, 2))
    errors = visits * values.square() - 2.0 * values * targets.sum(dim=-1, keepdim=True)
    value = 0.5 * errors.sum(dim=(1, 2))
    entropy = -(visits * log_probs.exp() * log_probs)[:-1].sum()
    num_episodes = config.num_experts * config.envs_per_expert
    squares = 0.5 * statistics.squares
    return Losses(
        expert_policy=policy[:-1].sum() / num_episodes,
        expert_value=(value[:-1].sum() + squares[0]) / num_episodes,
        expert_entropy=entropy / num_episodes,
        observer_policy=policy[-1] / num_episodes,
        observer_value=(value[-1] + hypers.beta**2 * squares[1]) / num_episodes,
    )


def learn(
    params: Params,
    moments: list[tuple[Tensor, Tensor]],
    count: Tensor,
    statistics: Statistics,
    config: TrainConfig,
    hypers: Hypers,
) -> dict[str, Tensor]:
    """Gradient and one step of Adam, in place; returns the mean returns of the episodes.

    Args:
      params: heads and critics.
      moments: Adam's, of each weight.
      count: steps taken so far [].
      statistics: of the episodes.
      config: static settings.
      hypers: rates, β, gamma, entropy bonus, clipping norm.
    """

    def total(params: Params) -> Tensor:
        return losses(params, statistics, config, hypers).total(hypers.ent_coef)

    gradients = torch.func.grad(total)(params)
    apply_gradients(params, moments, count, gradients, config, hypers)
    num_episodes = config.num_experts * config.envs_per_expert
    lengths = statistics.counts.sum(dim=(1, 2)) / num_episodes
    return {"pe_return": -lengths[:-1].sum(), "observer_return": -lengths[-1]}


def apply_gradients(
    params: Params,
    moments: list[tuple[Tensor, Tensor]],
    count: Tensor,
    gradients: Params,
    config: TrainConfig,
    hypers: Hypers,
) -> None:
    """One step of Adam, in place; the gradient of the heads is clipped.

    Args:
      params: heads and critics.
      moments: Adam's, of each weight.
      count: steps taken so far [].
      gradients: of the loss by ``params``.
      config: static settings.
      hypers: rates, clipping norm.
    """
    norm = torch.stack([weights.square().sum() for weights in gradients.heads]).sum().sqrt()
    clip = torch.where(norm > hypers.max_grad_norm, hypers.max_grad_norm / norm, 1.0)
    share = learning_rate_share(count, config, hypers)
    count.add_(1.0)
    steps = [(weights, clip, hypers.learning_rate) for weights in gradients.heads]
    steps += [(weights, 1.0, hypers.critic_learning_rate) for weights in gradients.critics]
    for weights, (first, second), (gradient, scale, rate) in zip(
        (*params.heads, *params.critics), moments, steps, strict=True
    ):
        gradient = scale * gradient
        first.lerp_(gradient, 0.1)
        second.lerp_(gradient.square(), 0.001)
        mean, variance = first / (1 - 0.9**count), second / (1 - 0.999**count)
        weights.sub_(rate * share * mean / (variance.sqrt() + 1e-8))


compiled_thresholds = torch.compile(thresholds, fullgraph=True, dynamic=False)
compiled_act = torch.compile(act, fullgraph=True, dynamic=False)
compiled_summarize = torch.compile(summarize, fullgraph=True, dynamic=False)
compiled_learn = torch.compile(learn, fullgraph=True, dynamic=False)
