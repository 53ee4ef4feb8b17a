"""The listing in PyTorch computes what its description says."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason='torch is not installed: pip install ".[test,bench]"')

from benchmarks import common  # noqa: E402
from benchmarks import listing as benchmark  # noqa: E402
from benchmarks.torch_ape import listing  # noqa: E402

BETA = 0.5


def samples(size):
    return torch.randn(size, 10), torch.randint(0, 5, (size,)), torch.randn(size)


def outputs(network, row):
    """A network of the listing in NumPy: one hidden layer of relu."""
    first, _, last = network
    hidden = np.maximum(first.weight.numpy() @ row + first.bias.numpy(), 0)
    return last.weight.numpy() @ hidden + last.bias.numpy()


def probabilities(ensemble, expert, row):
    logits = outputs(ensemble.expert_policies[expert][0], row)
    return np.exp(logits) / np.exp(logits).sum()


def test_the_update_descends_the_loss_of_its_samples():
    torch.manual_seed(0)
    ensemble = listing.PolicyEnsemble(10, 5, 3)
    optimizer = torch.optim.Adam(ensemble.parameters(), lr=1e-3)
    (state1, action1, reward1), (state2, action2, reward2) = samples(32), samples(32)
    torch.manual_seed(1)
    drawn = torch.randint(0, 3, (32,)), torch.randint(0, 3, (32,))
    expected = 0.0
    with torch.no_grad():
        for expert, s, a, r in zip(drawn[0], state1.numpy(), action1, reward1, strict=True):
            advantage = r - outputs(ensemble.value_functions[expert], s)[0]
            log_prob = np.log(probabilities(ensemble, expert, s)[a])
            expected += (0.5 * advantage**2 - log_prob * advantage) / 32
        for expert, s, a, r in zip(drawn[1], state2.numpy(), action2, reward2, strict=True):
            advantage = -BETA * r - outputs(ensemble.value_functions[expert], s)[0]
            mixture = np.mean([probabilities(ensemble, c, s) for c in range(3)], axis=0)
            expected += (0.5 * advantage**2 - np.log(mixture[a]) * advantage) / 32
        before = [x.clone() for x in ensemble.parameters()]
    torch.manual_seed(1)
    loss = listing.update_from_samples(
        ensemble, optimizer, state1, action1, reward1, state2, action2, reward2, BETA
    )
    assert loss == pytest.approx(float(expected), rel=1e-5)
    for old, new in zip(before, ensemble.parameters(), strict=True):
        moved = (new - old).abs().max().item()
        assert moved == pytest.approx(1e-3, rel=0.05)  # A first step of Adam.


def test_the_benchmark_times_it_beside_ours():
    rows = benchmark.measure(common.Effort(repeats=2, seconds=1e-3, budget=1.0))["rows"]
    for row in rows:
        assert row["ratio"] == pytest.approx(
            row["ours_updates_per_second"] / row["listing_updates_per_second"]
        )
