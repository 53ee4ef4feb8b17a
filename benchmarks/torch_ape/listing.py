"""The original listing's interface and its loop over drawn experts, with its mistakes mended.

Mended: an expert acts on its own sample alone; the log-probability is that of the action taken; the
clone is the average of the experts and not their sum; the observer's advantage is −β R − V; both
losses of both terms make one step of the optimiser.
"""

import torch
from torch import Tensor, nn, optim

HIDDEN = 64


class PolicyEnsemble(nn.Module):
    """Experts and their critics, a network each."""

    def __init__(self, state_dim: int, action_dim: int, num_experts: int):
        """Draw the networks."""
        super().__init__()
        self.num_experts = num_experts
        self.expert_policies = nn.ModuleList(
            nn.Sequential(_network(state_dim, action_dim), nn.Softmax(dim=-1))
            for _ in range(num_experts)
        )
        self.value_functions = nn.ModuleList(_network(state_dim, 1) for _ in range(num_experts))

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities [N, A] and values [N] of an expert that is drawn for every sample."""
        drawn = torch.randint(0, self.num_experts, (state.size(0),))
        pairs = list(zip(drawn, state, strict=True))
        actions = torch.stack([self.expert_policies[index](row) for index, row in pairs])
        values = torch.stack([self.value_functions[index](row) for index, row in pairs])
        return actions, values.squeeze(-1)

    def clone_policy(self, state: Tensor) -> Tensor:
        """Probabilities [N, A] of the mixture of all experts."""
        return torch.stack([policy(state) for policy in self.expert_policies]).mean(dim=0)


def _network(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs))


def update_from_samples(
    policy_ensemble: PolicyEnsemble,
    optimizer: optim.Optimizer,
    state1: Tensor,
    action1: Tensor,
    reward1: Tensor,
    state2: Tensor,
    action2: Tensor,
    reward2: Tensor,
    beta: float,
) -> float:
    """One step on samples of the experts (1) and of the observer (2), and the loss before it."""
    actions1, values1 = policy_ensemble(state1)
    _, values2 = policy_ensemble(state2)
    advantage1, advantage2 = reward1 - values1, -beta * reward2 - values2
    value_loss = 0.5 * (advantage1.square().mean() + advantage2.square().mean())
    log_probs1 = _log_prob(actions1, action1)
    log_probs2 = _log_prob(policy_ensemble.clone_policy(state2), action2)
    policy_loss1 = -(log_probs1 * advantage1.detach()).mean()
    policy_loss2 = -(log_probs2 * advantage2.detach()).mean()
    loss = value_loss + policy_loss1 + policy_loss2
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def _log_prob(probs: Tensor, actions: Tensor) -> Tensor:
    return probs.gather(1, actions.unsqueeze(1)).squeeze(1).log()
