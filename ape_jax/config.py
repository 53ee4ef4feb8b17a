"""Settings: what shapes the compiled program (static) and what is a number in it (traced)."""

import dataclasses
import math

from flax import struct

from ape_jax.types import ActivationName, CriticForm, HeadName, ObserverWeights, SettingError


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """What shapes the program. Hashable; a change recompiles."""

    env: str = "GridWorld-ape"
    """Any registered gymnax environment."""
    num_experts: int = 2
    """Expert heads in the ensemble (E)."""
    envs_per_expert: int = 64
    """Parallel episodes of each expert an update (B); the observer runs E x B."""
    num_updates: int = 2000
    """Updates of one training run."""
    head: HeadName = "tabular"
    """Expert heads: a table of logits for a finite observation space, or an MLP."""
    hidden_sizes: tuple[int, ...] = (64,)
    """Widths of an MLP head's hidden layers."""
    activation: ActivationName = "tanh"
    """Nonlinearity of an MLP head. Centred tanh trains; relu is the original listing's."""
    observer: ObserverWeights = "uniform"
    """The observer trained against: the paper's uniform mixture, or the exact posterior p(c|s)."""
    critic: CriticForm = "separate"
    """Baselines: one critic a term, or the paper's Eq. 4 as printed, which shares one."""

    def __post_init__(self):
        for name in ("num_experts", "envs_per_expert", "num_updates"):
            value = getattr(self, name)
            if value < 1:
                raise SettingError(f"{name} must be at least 1; got {value}")
        if not self.hidden_sizes or min(self.hidden_sizes) < 1:
            raise SettingError(
                f"hidden_sizes must be one or more widths of at least 1; got {self.hidden_sizes}"
            )
        for field in ("head", "activation", "observer", "critic"):
            choices = type(self).__annotations__[field].__args__
            if getattr(self, field) not in choices:
                raise SettingError(
                    f"{field} must be one of {', '.join(choices)}; got {getattr(self, field)!r}"
                )


@struct.dataclass
class Hypers:
    """Numbers in the program: a pytree of scalars, so that a sweep is one compile and one vmap."""

    learning_rate: float = 0.05
    """Adam step of the expert heads."""
    critic_learning_rate: float = 0.5
    """Adam step of the critics, in units of return where they are tables."""
    final_learning_rate: float = 1.0
    """Share of both learning rates that is left at the last update; they fall linearly."""
    max_grad_norm: float = 10.0
    """Global-norm clip of the gradient of the heads."""
    beta: float = 0.3
    """Weight of the observer's return in the objective; 0 trains experts alone."""
    discount: float = 1.0
    """Discount of rewards a step; the exact quantities of a finite MDP are undiscounted."""
    temperature: float = 1.0
    """The observer trained against deploys its mixture at this temperature; near 0 is greedy."""
    entropy_bonus: float = 0.0
    """Weight of the experts' entropy, in return per nat."""

    def __post_init__(self):
        rules = {
            "learning_rate": (_positive, "> 0"),
            "critic_learning_rate": (_positive, "> 0"),
            "final_learning_rate": (lambda x: 0 <= x <= 1, "between 0 and 1"),
            "max_grad_norm": (lambda x: x > 0, "> 0"),
            "beta": (lambda x: 0 <= x < math.inf, ">= 0 and finite"),
            "discount": (lambda x: 0 < x <= 1, "in (0, 1]"),
            "temperature": (_positive, "> 0 and finite"),
            "entropy_bonus": (lambda x: 0 <= x < math.inf, ">= 0 and finite"),
        }
        for name, (holds, rule) in rules.items():
            value = getattr(self, name)
            # Arrays and tracers, which transformations put here, cannot be checked.
            if isinstance(value, int | float) and not holds(value):
                raise SettingError(f"{name} must be {rule}; got {value}")


def _positive(value: float) -> bool:
    return 0 < value < math.inf


def recipe(head: HeadName) -> tuple[TrainConfig, Hypers]:
    """The settings that train each kind of head on the gridworld."""
    if head == "mlp":
        return (
            TrainConfig(head="mlp", num_updates=4000),
            Hypers(learning_rate=1e-2, critic_learning_rate=1e-2, final_learning_rate=0.02),
        )
    return TrainConfig(head=head), Hypers()
