"""PG-APE as one first writes it in PyTorch: networks on every sample, autograd, ``torch.optim``."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Categorical

from ape_jax.config import Hypers, TrainConfig
from benchmarks.torch_ape import gridworld, networks
from benchmarks.torch_ape.networks import Params
from benchmarks.torch_ape.objective import (
    Losses,
    check,
    learning_rate_share,
    uniform_log_weight,
)


class Episodes(NamedTuple):
    """Episodes [E, B, T] of the experts or [N, T] of the observer, padded to T."""

    cells: Tensor
    actions: Tensor
    rewards: Tensor
    """Zero after the end of the episode."""
    mask: Tensor
    """True up to and including the step that ends the episode."""


class Trainer:
    """A training run of the penalised form with the uniform observer."""

    def __init__(
        self,
        config: TrainConfig,
        hypers: Hypers,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ):
        """Draw parameters.

        Args:
          config: static settings; a world or an observer other than the paper's is refused.
          hypers: rates, β, gamma, entropy coefficient, clipping norm.
          device: where everything lives.
          seed: of parameters and rollouts.

        Raises:
          SettingError: a setting that is not covered.
        """
        check(config, hypers)
        self.config, self.hypers = config, hypers
        self.generator = torch.Generator(device).manual_seed(seed)
        self.params = networks.create_params(config, self.generator)
        for weights in (*self.params.heads, *self.params.critics):
            weights.requires_grad_()
        self.optimizer = torch.optim.Adam(
            [
                {"params": self.params.heads, "lr": hypers.learning_rate},
                {"params": self.params.critics, "lr": hypers.critic_learning_rate},
            ]
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda count: learning_rate_share(count, config, hypers)
        )

    def update(self) -> dict[str, Tensor]:
        """Collect, loss, gradient, step; returns the mean returns of the episodes collected."""
        experts, observer = collect(self.params, self.config, self.generator)
        parts = losses(self.params, experts, observer, self.hypers, self.config.activation)
        self.minimise(parts.total(self.hypers.ent_coef))
        return {
            "pe_return": experts.rewards.sum(-1).mean(),
            "observer_return": observer.rewards.sum(-1).mean(),
        }

    def minimise(self, loss: Tensor) -> None:
        """One step of the optimiser down a loss; the gradient of the heads is clipped."""
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.params.heads, self.hypers.max_grad_norm)
        self.optimizer.step()
        self.schedule.step()


def collect(
    params: Params, config: TrainConfig, generator: torch.Generator
) -> tuple[Episodes, Episodes]:
    """Fresh episodes of every expert [E, B, T] and of the observer [E * B, T]."""
    shape = (config.num_experts, config.envs_per_expert)

    def experts(cells: Tensor) -> Tensor:
        return expert_log_probs(params, cells, config.activation)

    def observer(cells: Tensor) -> Tensor:
        return observer_log_probs(params, cells, config.activation)

    cells = gridworld.reset(shape[0] * shape[1], generator)
    others = gridworld.reset(shape[0] * shape[1], generator)
    return rollout(experts, cells.view(shape), generator), rollout(observer, others, generator)


@torch.no_grad()
def rollout(policy, cells: Tensor, generator: torch.Generator) -> Episodes:
    """One episode in every environment; steps after its end are masked."""
    mask = torch.ones_like(cells, dtype=torch.bool)
    steps = []
    for _ in range(gridworld.HORIZON):
        actions = _sample(Categorical(logits=policy(cells)), generator)
        moved, rewards, terminated = gridworld.step(cells, actions)
        steps.append((cells, actions, rewards * mask, mask))
        cells = torch.where(mask, moved, cells)
        mask = mask & ~terminated
    return Episodes(*(torch.stack(column, dim=-1) for column in zip(*steps, strict=True)))


def _sample(policy: Categorical, generator: torch.Generator) -> Tensor:
    """``Categorical.sample`` with a generator of its own."""
    probs = policy.probs.flatten(0, -2)
    return torch.multinomial(probs, 1, generator=generator).view(policy.batch_shape)


def expert_log_probs(params: Params, cells: Tensor, activation: str) -> Tensor:
    """Log π_c(·|s) [E, N, A] of every expert at its own cells [E, N]."""
    return networks.outputs_at(params.heads, cells, activation).log_softmax(dim=-1)


def observer_log_probs(params: Params, cells: Tensor, activation: str) -> Tensor:
    """Log π_o(·|s) [N, A] of the uniform mixture at cells [N]."""
    num_experts = len(params.heads[0])
    log_probs = expert_log_probs(params, cells.expand(num_experts, -1), activation)
    return (log_probs + uniform_log_weight(num_experts)).logsumexp(dim=0)


def discounted_returns(rewards: Tensor, gamma: float) -> Tensor:
    """Returns to go of rewards [..., T]."""
    later = torch.zeros_like(rewards[..., 0])
    returns = []
    for reward in reversed(rewards.unbind(dim=-1)):
        later = reward + gamma * later
        returns.append(later)
    return torch.stack(returns[::-1], dim=-1)


def losses(
    params: Params, experts: Episodes, observer: Episodes, hypers: Hypers, activation: str
) -> Losses:
    """Parts of the loss of collected episodes, by the networks' outputs at every step.

    Args:
      params: heads and critics.
      experts: episodes [E, B, T].
      observer: episodes [N, T].
      hypers: β, gamma.
      activation: of MLPs.
    """
    cells = experts.cells.flatten(1)
    shape = experts.cells.shape
    log_probs = expert_log_probs(params, cells, activation).view(*shape, -1)
    expert_critics = [weights[:-1] for weights in params.critics]
    values = networks.outputs_at(expert_critics, cells, activation).view(shape)
    targets = discounted_returns(experts.rewards, hypers.gamma)
    policy, value, entropy = _terms(log_probs, values, targets, experts)

    cells = observer.cells.flatten()
    shape = observer.cells.shape
    log_probs = observer_log_probs(params, cells, activation).view(*shape, -1)
    observer_critic = [weights[-1:] for weights in params.critics]
    values = networks.outputs_at(observer_critic, cells[None], activation).view(shape)
    targets = -hypers.beta * discounted_returns(observer.rewards, hypers.gamma)
    observer_policy, observer_value, _ = _terms(log_probs, values, targets, observer)
    return Losses(policy, value, entropy, observer_policy, observer_value)


def _terms(
    log_probs: Tensor, values: Tensor, targets: Tensor, episodes: Episodes
) -> tuple[Tensor, Tensor, Tensor]:
    """Policy loss, value loss and entropy: sums over valid steps, means over episodes."""
    taken = log_probs.gather(-1, episodes.actions[..., None]).squeeze(-1)
    policy = -taken * (targets - values).detach()
    value = 0.5 * (values - targets).square()
    entropy = -(log_probs.exp() * log_probs).sum(dim=-1)
    return tuple((term * episodes.mask).sum(dim=-1).mean() for term in (policy, value, entropy))
