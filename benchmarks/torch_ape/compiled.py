"""PG-APE as fast as PyTorch gets: a few compiled graphs, and CUDA graphs around them on a GPU.

What makes it fast, against ``eager``: policies are looked up in tables made once an update, and all
thresholds of a cell are one number; experts and observer act in one batch, by 15 random bits a
step; blocks of steps end when nobody lives, first for the experts; the loss is computed from how
often each action was taken in each cell and what it returned, which says all that the samples say;
Adam is part of the graph.
"""

import functools
import math
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
"""Steps of a rollout that are unrolled in one graph: a divisor of the horizon, and a multiple of
four, as four steps share a word of random bits."""
NUMBERS_PER_WORD = 4
ONES = 0x0001_0001_0001_0001
"""One in each of the four numbers of 16 bits in a word."""
GUARDS = -0x7FFF_7FFF_7FFF_8000
"""The highest bit of each; as a signed word."""
WARM_UPS = 3
"""Updates on a GPU before one is captured."""


class Statistics(NamedTuple):
    """Inputs of the losses from episodes of P = E + 1 policies; the observer is the last one.

    Tables have one more entry for every episode, which takes the steps after its end.
    """

    counts: Tensor
    """Live steps [P * S * A + N] that took the action in the cell."""
    returns: Tensor
    """Sums [P * S * A + N] of the returns to go of these steps."""
    squares: Tensor
    """Sums [N] of their squares in each episode; the observer's are the second half."""

    def tables(self, num_experts: int) -> tuple[Tensor, Tensor]:
        """Counts and sums of returns [P, S, A]."""
        shape = (num_experts + 1, NUM_CELLS, NUM_ACTIONS)
        size = math.prod(shape)
        return self.counts[:size].view(shape), self.returns[:size].view(shape)


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
        num_words = gridworld.HORIZON // NUMBERS_PER_WORD
        self.words = torch.empty(num_words, len(self.blocks), dtype=torch.int64, device=device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.metrics: dict[str, Tensor] = {}
        self.num_calls = 0

    def update(self) -> dict[str, Tensor]:
        """Collect, statistics, gradient, step; returns the mean returns of the episodes collected.

        On a GPU the next update overwrites them.
        """
        self.num_calls += 1
        if self.graph is None and self.words.is_cuda and self.num_calls > WARM_UPS:
            self._capture()
        if self.graph is None:
            self.metrics = self._update()
        else:
            self.graph.replay()
        return self.metrics

    def live_steps(self) -> float:
        """Steps of the last update before the ends of its episodes: each costs 1."""
        num_episodes = self.config.num_experts * self.config.envs_per_expert
        return -num_episodes * sum(float(x) for x in self.metrics.values())

    def _update(self) -> dict[str, Tensor]:
        self.words.random_(-(2**63), None, generator=self.generator)
        places = self.blocks + gridworld.reset(len(self.blocks), self.generator)
        packed = compiled_thresholds(self.params.heads, self.config.activation)
        records = self.act(places, packed)
        statistics = self.summarize(records)
        return compiled_learn(
            self.params, self.moments, self.count, statistics, self.config, self.hypers
        )

    def act(self, places: Tensor, packed: Tensor) -> list[Tensor]:
        """Keys of episodes from their starts, in blocks of steps [steps, N].

        On a CPU only the observer's, [steps, N / 2], follow where no expert lives any more, and
        none where nobody does.
        """
        records = []
        for words in self.words.split(STEPS_PER_GRAPH // NUMBERS_PER_WORD):
            keys, places = compiled_act(places, words[:, -len(places) :], packed, self.successors)
            records.append(keys)
            if not places.is_cuda:
                if len(places) == len(self.blocks) and self._all_ended(places.chunk(2)[0]):
                    places = places.chunk(2)[1]
                if self._all_ended(places):
                    break
        return records

    def _all_ended(self, places: Tensor) -> bool:
        return int(places.amin()) == len(self.rewards) // NUM_ACTIONS - 1

    def summarize(self, records: list[Tensor]) -> Statistics:
        """Statistics of episodes, from their last block of steps to the first."""
        num_episodes = len(self.blocks)
        zeros = self.rewards.new_zeros
        size = len(self.rewards) - NUM_ACTIONS + num_episodes
        statistics = Statistics(zeros(size), zeros(size), zeros(num_episodes))
        later = zeros(records[-1].shape[1])
        for keys in reversed(records):
            later = pad(later, (keys.shape[1] - len(later), 0))
            later = compiled_summarize(keys, later, self.rewards, self.hypers.gamma, statistics)
        return statistics

    def _capture(self) -> None:
        """Record one update, which is not carried out, on the tensors that all updates use."""
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        self.graph.register_generator_state(self.generator)
        with torch.cuda.graph(self.graph):
            self.metrics = self._update()


def lookups(num_experts: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """The world of P = E + 1 policies side by side: a place is a cell of the policy that acts.

    An episode that has ended stays in one more place, the last one, and earns nothing.

    Returns:
      Next places and rewards [(P * S + 1) * A], both by key: place · A + action.
    """
    successors, rewards = gridworld.tables(device)
    offsets = torch.arange(num_experts + 1, device=device) * NUM_CELLS
    nowhere = (num_experts + 1) * NUM_CELLS
    places = offsets[:, None, None] + successors
    places = places.masked_fill(successors == gridworld.GOAL, nowhere).flatten()
    rewards = rewards.flatten().repeat(num_experts + 1)
    return pad(places, (0, NUM_ACTIONS), value=nowhere), pad(rewards, (0, NUM_ACTIONS))


def log_probs_everywhere(heads: list[Tensor], activation: str) -> Tensor:
    """Log π(·|s) [P, S, A] of every expert, and of their uniform mixture."""
    experts = networks.outputs_everywhere(heads, activation).log_softmax(dim=-1)
    observer = (experts + uniform_log_weight(len(experts))).logsumexp(dim=0)
    return torch.cat([experts, observer[None]])


def thresholds(heads: list[Tensor], activation: str) -> Tensor:
    """P(action ≤ a) in every place [P * S + 1], as four multiples of 2^-15 in one word.

    They are scaled, as the sum of the probabilities is not quite one.
    """
    cumulative = log_probs_everywhere(heads, activation).exp().cumsum(dim=-1).flatten(0, 1)
    shares = cumulative[:, :-1] / cumulative[:, -1:]
    columns = (shares * 2**15).round().to(torch.int64).unbind(dim=-1)
    return pad(sum(column << 16 * place for place, column in enumerate(columns)), (0, 1))


def act(places: Tensor, words: Tensor, packed: Tensor, successors: Tensor) -> tuple[Tensor, Tensor]:
    """Steps of all environments at once; actions invert the cumulative distribution.

    Args:
      places: where the agents stand [N].
      words: random bits, of four steps each [T / 4, N].
      packed: thresholds [P * S + 1].
      successors: next places by key [(P * S + 1) * A].

    Returns:
      place · A + action of each step [T, N], and the places after the steps [N].
    """
    keys = []
    for word in words.unbind():
        for step in range(NUMBERS_PER_WORD):
            number = (word >> 16 * step) & 0x7FFF
            # Four comparisons at once: a guard stays where the number is not below the threshold.
            guards = (number * ONES + GUARDS - packed[places]) & GUARDS
            actions = (((guards >> 15) & ONES) * ONES) >> 48
            keys.append(places * NUM_ACTIONS + actions)
            places = successors[keys[-1]]
    return torch.stack(keys), places


def summarize(
    keys: Tensor, later: Tensor, rewards: Tensor, gamma: float, statistics: Statistics
) -> Tensor:
    """Add a block of steps to the statistics, in place.

    Args:
      keys: place · A + action of each step [T, n], of the last n of N episodes.
      later: returns [n] after these steps.
      rewards: by key [(P * S + 1) * A]; zero where an episode has ended.
      gamma: γ.
      statistics: of the steps after these.

    Returns:
      The returns [n] from the first of these steps.
    """
    returns = []
    for reward in reversed(rewards[keys].unbind()):
        later = reward + gamma * later
        returns.append(later)
    returns = torch.stack(returns[::-1])
    # Steps after the end go where they do not wait for each other.
    num_pairs = len(rewards) - NUM_ACTIONS
    episodes = torch.arange(keys.shape[1], device=keys.device)
    index = torch.where(keys < num_pairs, keys, num_pairs + episodes).flatten()
    statistics.counts.scatter_add_(0, index, torch.ones_like(index, dtype=rewards.dtype))
    statistics.returns.scatter_add_(0, index, returns.flatten())
    statistics.squares[-len(later) :] += returns.square().sum(dim=0)
    return later


def losses(params: Params, statistics: Statistics, config: TrainConfig, hypers: Hypers) -> Losses:
    """Parts of the loss, the same as ``eager.losses`` on the episodes of the statistics."""
    log_probs = log_probs_everywhere(params.heads, config.activation)
    values = networks.outputs_everywhere(params.critics, config.activation)
    # The observer's targets are −β times its returns.
    scale = torch.ones_like(values)
    scale[-1] = -hypers.beta
    counts, returns = statistics.tables(config.num_experts)
    targets, visits = scale * returns, counts.sum(dim=-1, keepdim=True)
    advantages = targets - counts * values.detach()
    policy = -(log_probs * advantages).sum(dim=(1, 2))
    errors = visits * values.square() - 2.0 * values * targets.sum(dim=-1, keepdim=True)
    value = 0.5 * errors.sum(dim=(1, 2))
    entropy = -(visits * log_probs.exp() * log_probs)[:-1].sum()
    num_episodes = config.num_experts * config.envs_per_expert
    squares = 0.5 * statistics.squares.view(2, -1).sum(dim=1)
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
    lengths = statistics.tables(config.num_experts)[0].sum(dim=(1, 2)) / num_episodes
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


compile_whole = functools.partial(
    torch.compile,
    fullgraph=True,
    dynamic=False,
    options={"assert_indirect_indexing": False},  # JAX does not check its indices either.
)
compiled_thresholds = compile_whole(thresholds)
compiled_act = compile_whole(act)
compiled_summarize = compile_whole(summarize)
compiled_learn = compile_whole(learn)
