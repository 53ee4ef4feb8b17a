"""Code of both versions: the parts of the loss, and the settings that they cover."""

import math
from typing import NamedTuple

from torch import Tensor

from ape_jax.config import Hypers, TrainConfig
from ape_jax.types import SettingError


class Losses(NamedTuple):
    """Parts of the loss: sums over time, means over trajectories."""

    expert_policy: Tensor
    expert_value: Tensor
    expert_entropy: Tensor
    """In nats; a bonus enters the total with a minus sign."""
    observer_policy: Tensor
    observer_value: Tensor

    def total(self, ent_coef: float) -> Tensor:
        """The loss that the parameters minimise."""
        policies = self.expert_policy + self.observer_policy
        values = self.expert_value + self.observer_value
        return policies + values - ent_coef * self.expert_entropy


def check(config: TrainConfig, hypers: Hypers) -> None:
    """Refuse settings of ``ape_jax`` that this comparison leaves out.

    Raises:
      SettingError: such a setting.
    """
    covered = {
        "env": (config.env, "GridWorld-ape"),
        "observer": (config.observer, "uniform"),
        "critic": (config.critic, "separate"),
        "min_return": (hypers.min_return, None),
        "temperature": (hypers.temperature, 1.0),
    }
    for name, (value, only) in covered.items():
        if value != only:
            raise SettingError(f"{name} must be {only!r} in PyTorch; got {value!r}")


def learning_rate_share(count: Tensor | int, config: TrainConfig, hypers: Hypers) -> Tensor | float:
    """Share of the learning rates left at an update: linear, from 1 to ``lr_end_fraction``."""
    fall = 1.0 - hypers.lr_end_fraction
    return 1.0 - fall * count / max(config.num_updates - 1, 1)


def uniform_log_weight(num_experts: int) -> float:
    """Log w_c of the paper's observer."""
    return -math.log(num_experts)
