"""The settings of each algorithm: PG has no settings of PPO, and PPO has none of PG."""

import dataclasses
import math
from numbers import Real
from typing import Any, ClassVar, Literal, get_args, get_origin, no_type_check

from ape_jax.errors import SettingError
from ape_jax.settings.names import (
    ActivationName,
    AlgorithmName,
    ConstraintName,
    CriticForm,
    HeadName,
    ObserverName,
    PGHeadName,
    PGObserverName,
    StdName,
)


# Both bases check their values and raise SettingError, and JAX puts tracers in place of numbers.
# The shape checks under pytest would be first, so they are switched off here.
@no_type_check
@dataclasses.dataclass(frozen=True)
class _Config:
    """Settings that shape the program and that both algorithms have.

    A config is hashable; another value is another compiled program.
    """

    algorithm: ClassVar[AlgorithmName]
    spreads_environments: ClassVar[bool]
    """Whether an update can spread the environments of one seed over devices."""
    takes_observer_reward: ClassVar[bool]
    """Whether the observer's term can have a reward of its own."""
    init_scale: ClassVar[float]
    """Scale of the last layer of a head at the start; tables start with standard deviation 1."""

    env: str = "GridWorld-ape"
    """Name of a registered environment: the package's own, or any of gymnax."""
    env_param: tuple[str, ...] = ()
    """Parameter of the environment that differs from its default: name=value. May be repeated."""
    head: HeadName = "tabular"
    """Kind of the expert heads: a table of logits where observations are finite, an MLP, a
    convolution and an MLP for images, or (with ppo) an MLP with a Gaussian for continuous
    actions."""
    observer: ObserverName = "uniform"
    """Observer that experts are trained against: the paper's uniform mixture, the exact posterior
    p(c|s) of a finite MDP, a classifier that is trained along in any environment, or (with ppo)
    none, which trains experts alone."""
    num_experts: int = 2
    """Number of expert heads in the ensemble (E)."""
    envs_per_expert: int = 64
    """Parallel environments of each expert (B). The observer, if there is one, runs E x B more."""
    num_updates: int = 3000
    """Number of updates of one training run."""
    hidden_sizes: tuple[int, ...] = (64,)
    """Widths of the hidden layers of a head."""
    activation: ActivationName = "tanh"
    """Nonlinearity of a head. The centred tanh trains; relu is what the original listing has."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and (not isinstance(value, int) or value < 1):
                raise SettingError(f"{field.name} must be at least 1 and whole; got {value!r}")
            if get_origin(field.type) is Literal and value not in get_args(field.type):
                raise SettingError(
                    f"{field.name} must be one of {', '.join(get_args(field.type))} with "
                    f"algorithm={self.algorithm}; got {value!r}"
                )
        sizes = self.hidden_sizes
        if not isinstance(sizes, tuple) or not sizes or min(sizes) < 1:
            raise SettingError(
                f"hidden_sizes must be a tuple of widths of at least 1; got {sizes!r}"
            )

    def without_observer(self):
        """The same settings: β = 0 leaves an observer that always runs without effect."""
        return self

    def with_state_std(self):
        """The same settings, where no head has standard deviations."""
        return self


@dataclasses.dataclass(frozen=True)
class PGConfig(_Config):
    """Static settings of PG-APE, the paper's policy gradient over whole episodes."""

    algorithm: ClassVar[AlgorithmName] = "pg"
    spreads_environments: ClassVar[bool] = True
    takes_observer_reward: ClassVar[bool] = True
    init_scale: ClassVar[float] = 1.0
    constraint: ClassVar[ConstraintName] = "multipliers"
    std: ClassVar[StdName] = "constant"
    normalize_observations: ClassVar[bool] = False

    head: PGHeadName = "tabular"
    observer: PGObserverName = "uniform"
    critic: CriticForm = "separate"
    """Baselines: one critic for each term, or one shared by both (paper, Eq. 4 as printed)."""


@dataclasses.dataclass(frozen=True)
class PPOConfig(_Config):
    """Static settings of PPO-APE, clipped surrogates over rollouts of fixed length."""

    algorithm: ClassVar[AlgorithmName] = "ppo"
    spreads_environments: ClassVar[bool] = False
    takes_observer_reward: ClassVar[bool] = False
    # Small clipped steps would first have to undo a start far from uniform.
    init_scale: ClassVar[float] = 0.01
    critic: ClassVar[CriticForm] = "separate"

    std: StdName = "constant"
    """Standard deviations of a Gaussian head: one for all states, or a function of the state."""
    constraint: ConstraintName = "multipliers"
    """Method that keeps every expert at min_return: one multiplier for each (paper, Eq. 2), or a
    gate that closes the observer's gradient to an expert whose return is too low."""
    rollout_length: int = 128
    """Steps of every environment between two updates (T)."""
    num_epochs: int = 4
    """Number of passes over a rollout."""
    num_minibatches: int = 4
    """Number of minibatches in one pass, one optimiser step each; it divides the rollout evenly."""
    normalize_observations: bool = False
    """Subtract the running mean from observations, and divide by the running standard deviation."""
    normalize_rewards: bool = False
    """Divide rewards by the running standard deviation of discounted returns."""

    def __post_init__(self):
        super().__post_init__()
        if self.std == "state" and self.head != "gaussian":
            raise SettingError(f"std='state' goes with head='gaussian'; got head={self.head!r}")
        steps = self.rollout_length * self.envs_per_expert
        if steps % self.num_minibatches:
            raise SettingError(
                f"num_minibatches must divide rollout_length x envs_per_expert, here "
                f"{self.rollout_length} x {self.envs_per_expert} = {steps}; "
                f"got {self.num_minibatches}"
            )

    def without_observer(self) -> "PPOConfig":
        """The same settings with experts that are trained alone."""
        return dataclasses.replace(self, observer="none")

    def with_state_std(self) -> "PPOConfig":
        """The same settings with standard deviations that depend on the state, if there are any."""
        return dataclasses.replace(self, std="state") if self.head == "gaussian" else self


TrainConfig = PGConfig | PPOConfig


@no_type_check
@dataclasses.dataclass(frozen=True)
class _Hypers:
    """Numbers in the program that both algorithms have.

    They are a pytree of scalars, so that a sweep over them is one compile and one ``vmap``;
    ``ape_jax.config`` tells JAX so.
    """

    learning_rate: float = 0.05
    """Learning rate of the expert heads (Adam)."""
    critic_learning_rate: float = 0.5
    """Learning rate of the critics (Adam), in units of return where critics are tables."""
    lr_end_fraction: float = 1.0
    """Fraction of the learning rates that is left at the last update; they fall linearly. With ppo
    the classifier's learning rate does not fall."""
    max_grad_norm: float = 10.0
    """Global norm at which the gradient of the heads is clipped; with ppo the gradient of each head
    and of each critic."""
    beta: float = 0.33
    """Weight of the observer's return in the objective; 0 trains experts alone. Unused where
    multipliers keep min_return."""
    gamma: float = 1.0
    """Discount of rewards per step. The exact quantities of a finite MDP are undiscounted."""
    temperature: float = 1.0
    """Temperature at which the observer deploys its mixture in training; near 0 is greedy."""
    ent_coef: float = 0.0
    """Weight of the experts' entropy, in return per nat; with ppo in standard deviations of the
    advantage per nat."""
    classifier_learning_rate: float = 0.05
    """Learning rate of the classifier behind observer=learned (Adam)."""
    min_return: float | None = None
    """Return that every expert must keep while the observer's is minimised (paper, Eq. 2). With
    constraint=multipliers, one multiplier for each expert takes the place of beta. None trains the
    penalised form (Eq. 3)."""
    multiplier_rate: float = 0.01
    """Growth of a multiplier's logarithm, per update and unit of return below min_return."""
    max_multiplier: float = 1000.0
    """Largest value of a multiplier, and one over the smallest. A smaller bound lets a satisfied
    constraint give way sooner."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            (holds, rule), value = _RULES[field.name], getattr(self, field.name)
            # Arrays and tracers, which JAX's transformations put here, cannot be checked.
            if isinstance(value, Real) and not holds(float(value)):
                raise SettingError(f"{field.name} must be {rule}; got {value}")

    def replace(self, **changes: Any):
        """The same numbers with some changed."""
        return dataclasses.replace(self, **changes)


@dataclasses.dataclass(frozen=True)
class PGHypers(_Hypers):
    """Numbers in the program of PG-APE."""


@dataclasses.dataclass(frozen=True)
class PPOHypers(_Hypers):
    """Numbers in the program of PPO-APE."""

    init_temperature: float | None = None
    """Temperature of the observer at the first update, from where it falls linearly to the last
    update's; None keeps it constant."""
    gate_width: float = 1.0
    """Return above min_return at which a gate is fully open."""
    gae_lambda: float = 0.95
    """λ of generalised advantage estimation."""
    clip_eps: float = 0.2
    """Distance of the probability ratio from 1 beyond which the surrogate is flat (ε)."""
    value_clip_eps: float | None = None
    """Distance of a critic from its old value beyond which its loss is flat; None: no limit."""


Hypers = PGHypers | PPOHypers

_POSITIVE = (lambda x: 0 < x < math.inf, "> 0 and finite")
_NOT_NEGATIVE = (lambda x: 0 <= x < math.inf, ">= 0 and finite")
_FRACTION = (lambda x: 0 <= x <= 1, "between 0 and 1")
_RULES = {
    "learning_rate": _POSITIVE,
    "critic_learning_rate": _POSITIVE,
    "lr_end_fraction": _FRACTION,
    "max_grad_norm": (lambda x: x > 0, "> 0"),
    "beta": _NOT_NEGATIVE,
    "gamma": (lambda x: 0 < x <= 1, "in (0, 1]"),
    "temperature": _POSITIVE,
    "ent_coef": _NOT_NEGATIVE,
    "classifier_learning_rate": _POSITIVE,
    "min_return": (lambda x: -math.inf < x < math.inf, "a finite number"),
    "multiplier_rate": _POSITIVE,
    "max_multiplier": (lambda x: 1 <= x < math.inf, ">= 1 and finite"),
    "init_temperature": _POSITIVE,
    "gate_width": _POSITIVE,
    "gae_lambda": _FRACTION,
    "clip_eps": (lambda x: 0 < x < 1, "between 0 and 1"),
    "value_clip_eps": _POSITIVE,
}

ALGORITHMS: dict[AlgorithmName, tuple[type[TrainConfig], type[Hypers]]] = {
    "pg": (PGConfig, PGHypers),
    "ppo": (PPOConfig, PPOHypers),
}
"""Config and hypers of each algorithm."""
