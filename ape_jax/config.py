"""Settings: what shapes the compiled program (static) and what is a number in it (traced)."""

import dataclasses
import difflib
import math
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin

import numpy as np
import tyro
from flax import struct
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ape_jax.types import (
    ActivationName,
    AlgorithmName,
    ConstraintName,
    CriticForm,
    HeadName,
    ObserverName,
    SettingError,
    StdName,
)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """What shapes the program. Hashable; a change recompiles."""

    env: str = "GridWorld-ape"
    """Any registered gymnax environment."""
    env_param: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """name=value: a parameter of the environment that differs from its default; may be repeated."""
    algorithm: AlgorithmName = "pg"
    """The paper's policy gradient over whole episodes, or clipped surrogates over segments."""
    num_experts: int = 2
    """Expert heads in the ensemble (E)."""
    envs_per_expert: int = 64
    """Parallel environments of each expert (B); the observer, if there is one, runs E x B."""
    num_updates: int = 3000
    """Updates of one training run."""
    head: HeadName = "tabular"
    """Expert heads: a table of logits for a finite observation space, an MLP, a convolution with an
    MLP on it for images; of continuous actions an MLP with a Gaussian."""
    hidden_sizes: tuple[int, ...] = (64,)
    """Widths of a head's hidden layers."""
    activation: ActivationName = "tanh"
    """Nonlinearity of a head. Centred tanh trains; relu is the original listing's."""
    std: StdName = "constant"
    """Standard deviations of a Gaussian head: one for all states, or a function of the state."""
    shared_trunk: bool = False
    """Heads share all layers but the last."""
    observer: ObserverName = "uniform"
    """The observer trained against: the paper's uniform mixture, the exact posterior p(c|s) of a
    finite MDP, or one learned along by a classifier, in any environment; none trains experts
    alone."""
    critic: CriticForm = "separate"
    """Baselines: one critic a term, or the paper's Eq. 4 as printed, which shares one."""
    constraint: ConstraintName = "multipliers"
    """What keeps every expert at min_return: a multiplier each (paper, Eq. 2), or with ppo a gate
    that closes the observer's gradient to an expert below it."""
    rollout_length: int = 128
    """Steps of every environment between two updates of ppo (T)."""
    num_epochs: int = 4
    """Passes of ppo over a segment."""
    num_minibatches: int = 4
    """Parts of a segment, each good for one step of the optimiser; they divide it evenly."""
    normalize_observations: bool = False
    """With ppo, observations minus their running mean over their running standard deviation."""
    normalize_rewards: bool = False
    """With ppo, rewards over the running standard deviation of discounted returns."""

    def __post_init__(self):
        counts = ("num_experts", "envs_per_expert", "num_updates")
        for name in (*counts, "rollout_length", "num_epochs", "num_minibatches"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise SettingError(f"{name} must be at least 1 and whole; got {value!r}")
        sizes = self.hidden_sizes
        if not isinstance(sizes, tuple) or not sizes or min(sizes) < 1:
            raise SettingError(
                f"hidden_sizes must be a tuple of widths of at least 1; got {sizes!r}"
            )
        names = ("algorithm", "head", "activation", "std", "observer", "critic", "constraint")
        for field in names:
            choices = get_args(type(self).__annotations__[field])
            if getattr(self, field) not in choices:
                raise SettingError(
                    f"{field} must be one of {', '.join(choices)}; got {getattr(self, field)!r}"
                )
        if self.std == "state" and self.head != "gaussian":
            raise SettingError(f"std='state' goes with head='gaussian'; got head={self.head!r}")
        if self.algorithm == "ppo":
            self._check_ppo()
        else:
            self._check_pg()

    def _check_ppo(self):
        steps = self.rollout_length * self.envs_per_expert
        if steps % self.num_minibatches:
            raise SettingError(
                f"num_minibatches must divide rollout_length x envs_per_expert, here "
                f"{self.rollout_length} x {self.envs_per_expert} = {steps}; "
                f"got {self.num_minibatches}"
            )
        if self.critic == "shared":
            raise SettingError("critic must be separate with algorithm=ppo; got 'shared'")
        if self.shared_trunk and self.head == "tabular":
            raise SettingError("shared_trunk needs a head with layers; got head='tabular'")

    def _check_pg(self):
        rules: dict[str, tuple[str, ...]] = {
            "head": ("tabular", "mlp", "conv"),
            "observer": ("uniform", "posterior", "learned"),
            "constraint": ("multipliers",),
        }
        for name, allowed in rules.items():
            if getattr(self, name) not in allowed:
                raise SettingError(
                    f"{name} must be {' or '.join(allowed)} with algorithm=pg; got "
                    f"{getattr(self, name)!r}. Add --algorithm ppo"
                )
        for name in ("shared_trunk", "normalize_observations", "normalize_rewards"):
            if getattr(self, name):
                raise SettingError(f"{name} goes with algorithm=ppo; got algorithm='pg'")


@struct.dataclass
class Hypers:
    """Numbers in the program: a pytree of scalars, so that a sweep is one compile and one vmap."""

    learning_rate: float = 0.05
    """Adam step of the expert heads."""
    critic_learning_rate: float = 0.5
    """Adam step of the critics, in units of return where they are tables."""
    lr_end_fraction: float = 1.0
    """Share of the learning rates that is left at the last update; they fall linearly. With ppo the
    classifier's stays."""
    max_grad_norm: float = 10.0
    """Global-norm clip of the gradient of the heads; with ppo of each head, and critic."""
    beta: float = 0.33
    """Weight of the observer's return in the objective; 0 trains experts alone. Unused where
    multipliers hold min_return."""
    gamma: float = 1.0
    """Discount of rewards a step; the exact quantities of a finite MDP are undiscounted."""
    temperature: float = 1.0
    """The observer trained against deploys its mixture at this temperature; near 0 is greedy."""
    init_temperature: float | None = None
    """With ppo the temperature at the first update, from where it falls linearly; None keeps it."""
    ent_coef: float = 0.0
    """Weight of the experts' entropy, in return per nat; with ppo in standard deviations of the
    advantage per nat."""
    classifier_learning_rate: float = 0.05
    """Adam step of the classifier behind observer=learned."""
    min_return: float | None = None
    """The return that every expert must keep while the observer's is minimised (paper, Eq. 2). With
    constraint=multipliers, one an expert takes the place of beta. None trains the penalised form
    (Eq. 3)."""
    multiplier_rate: float = 0.01
    """Growth of a multiplier's logarithm, per update and unit of return below min_return."""
    max_multiplier: float = 1000.0
    """Bound of every multiplier: the smaller, the sooner a kept constraint makes way again."""
    gate_width: float = 1.0
    """Return above min_return at which a gate is wide open."""
    gae_lambda: float = 0.95
    """λ of generalised advantages, with ppo."""
    clip_eps: float = 0.2
    """How far a probability may move from its old one before ppo's surrogate is flat."""
    value_clip_eps: float | None = None
    """How far a critic of ppo may move from its old value before its loss is flat; None does not
    limit it."""

    def __post_init__(self):
        rules = {
            "learning_rate": (_positive, "> 0 and finite"),
            "critic_learning_rate": (_positive, "> 0 and finite"),
            "lr_end_fraction": (lambda x: 0 <= x <= 1, "between 0 and 1"),
            "max_grad_norm": (lambda x: x > 0, "> 0"),
            "beta": (lambda x: 0 <= x < math.inf, ">= 0 and finite"),
            "gamma": (lambda x: 0 < x <= 1, "in (0, 1]"),
            "temperature": (_positive, "> 0 and finite"),
            "ent_coef": (lambda x: 0 <= x < math.inf, ">= 0 and finite"),
            "classifier_learning_rate": (_positive, "> 0 and finite"),
            "min_return": (lambda x: -math.inf < x < math.inf, "a finite number"),
            "multiplier_rate": (_positive, "> 0 and finite"),
            "max_multiplier": (lambda x: 1 <= x < math.inf, ">= 1 and finite"),
            "init_temperature": (_positive, "> 0 and finite"),
            "gate_width": (_positive, "> 0 and finite"),
            "gae_lambda": (lambda x: 0 <= x <= 1, "between 0 and 1"),
            "clip_eps": (lambda x: 0 < x < 1, "between 0 and 1"),
            "value_clip_eps": (_positive, "> 0 and finite"),
        }
        for name, (holds, rule) in rules.items():
            value = getattr(self, name)
            # Arrays and tracers, which transformations put here, cannot be checked.
            if isinstance(value, int | float | np.number) and not holds(float(value)):
                raise SettingError(f"{name} must be {rule}; got {value}")


def _positive(value: float) -> bool:
    return 0 < value < math.inf


def recipe(
    head: HeadName, min_return: float | None = None, algorithm: AlgorithmName = "pg"
) -> tuple[TrainConfig, Hypers]:
    """The settings that train each kind of head: with pg on the gridworld, with ppo elsewhere.

    Args:
      head: the kind.
      min_return: of the constrained form, which takes longer: its multipliers have to settle, and
        the rates have to fall for the experts to end on the constraint instead of about it. None
        is the penalised form.
      algorithm: the kind of update.
    """
    if algorithm == "ppo":
        return _ppo_recipe(head, min_return)
    if head == "mlp":
        train = TrainConfig(head="mlp", num_updates=4000)
        hypers = Hypers(
            beta=0.27, learning_rate=1e-2, critic_learning_rate=0.1, lr_end_fraction=0.02
        )
    else:
        train, hypers = TrainConfig(head=head), Hypers()
    if min_return is None:
        return train, hypers
    hypers = dataclasses.replace(hypers, min_return=min_return)
    if head == "mlp":
        # Without the bonus an expert now and then ends where it is sure of a bad action.
        train = dataclasses.replace(train, num_updates=5000)
        hypers = dataclasses.replace(hypers, ent_coef=0.1, max_multiplier=30.0)
    else:
        train = dataclasses.replace(train, num_updates=6000)
        hypers = dataclasses.replace(hypers, lr_end_fraction=0.1)
    return train, hypers


def recipe_of(
    head: str | None, min_return: float | None, algorithm: str | None
) -> tuple[TrainConfig, Hypers]:
    """The recipe of settings that are not checked yet; what has no recipe is passed over."""
    ppo = algorithm == "ppo"
    heads: dict[str | None, HeadName] = {name: name for name in get_args(HeadName)}
    if not ppo:
        heads = {"mlp": "mlp"}
    return recipe(heads.get(head, "mlp" if ppo else "tabular"), min_return, "ppo" if ppo else "pg")


def _ppo_recipe(head: HeadName, min_return: float | None) -> tuple[TrainConfig, Hypers]:
    train = TrainConfig(
        algorithm="ppo",
        head=head,
        hidden_sizes=(64, 64),
        envs_per_expert=16,
        num_updates=300,
        observer="learned",
        constraint="multipliers" if min_return is None else "gate",
        normalize_observations=head == "gaussian",
        normalize_rewards=head == "gaussian",
    )
    rate = {"tabular": 0.05, "conv": 5e-3}.get(head, 1e-3)
    hypers = Hypers(
        learning_rate=rate,
        critic_learning_rate=rate,
        classifier_learning_rate=rate,
        lr_end_fraction=0.1,
        max_grad_norm=0.5,
        # Without a return to keep, more of it sacrifices an expert.
        beta=0.5 if min_return is None else 2.5,
        gamma=0.99,
        ent_coef=0.002 if head == "gaussian" else 0.02,
        temperature=0.15,
        init_temperature=0.5,
        min_return=min_return,
    )
    if head == "conv":
        # MinAtar is learned by many large steps of the optimiser, on small minibatches.
        train = dataclasses.replace(
            train,
            hidden_sizes=(64,),
            activation="relu",
            envs_per_expert=32,
            num_epochs=2,
            num_minibatches=32,
        )
    return train, hypers


OF_PPO = (
    *("rollout_length", "num_epochs", "num_minibatches", "init_temperature"),
    *("gae_lambda", "clip_eps", "value_clip_eps"),
)
"""Settings that the policy gradient has no use for."""

CHUNK = 50
"""Updates between two looks from the host, at most."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything that decides the numbers of a run; what ``config.yaml`` holds."""

    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    """What shapes the program."""
    hypers: Hypers = dataclasses.field(default_factory=Hypers)
    """Numbers in the program."""
    seeds: int = 1
    """Runs trained side by side."""
    first_seed: int = 0
    """They are numbered from here; a seed means the same run however many are trained."""
    save_every: int | None = None
    """Updates between two checkpoints, in whole chunks; None saves about every half minute."""

    def __post_init__(self):
        if self.seeds < 1:
            raise SettingError(f"seeds must be at least 1; got {self.seeds}")
        if not 0 <= self.first_seed <= 2**31 - self.seeds:
            raise SettingError(
                f"first_seed must be at least 0, and first_seed + seeds at most 2^31; "
                f"got first_seed {self.first_seed} and seeds {self.seeds}"
            )
        if self.save_every is not None and self.save_every < 1:
            raise SettingError(f"save_every must be at least 1; got {self.save_every}")
        self._check_use()

    def _check_use(self):
        """Settings of the other algorithm, and returns to keep that nothing would, are refused."""
        train, hypers = self.train, self.hypers
        if train.algorithm == "pg":
            own = vars(train) | vars(hypers)
            default = vars(TrainConfig()) | vars(Hypers())
            for name in OF_PPO:
                if own[name] != default[name]:
                    raise SettingError(
                        f"{name} goes with algorithm=ppo; got {own[name]}. Leave it out"
                    )
        if train.observer == "none" and hypers.min_return is not None:
            raise SettingError(
                f"min_return goes with an observer, whom experts could be sacrificed to; got "
                f"{hypers.min_return} with observer='none'. Set it to None"
            )
        if train.constraint == "gate" and train.observer != "none" and hypers.min_return is None:
            raise SettingError(
                "constraint='gate' needs min_return, below which gates shut; got none"
            )

    @property
    def chunk(self) -> int:
        """Updates between two looks from the host, and the grid on which checkpoints lie."""
        return CHUNK if self.save_every is None else min(CHUNK, self.save_every)

    def to_flat(self) -> dict:
        """One level of names, the same as the flags; plain values only."""
        own = {name: getattr(self, name) for name in ("seeds", "first_seed", "save_every")}
        train = dataclasses.asdict(self.train)
        for name in ("hidden_sizes", "env_param"):
            train[name] = list(train[name])
        return {**train, **dataclasses.asdict(self.hypers), **own}

    def save(self, path: Path) -> None:
        """Write as YAML, whole or not at all; ``load`` reads it back to an equal one."""
        partial = path.with_name(path.name + ".partial")
        text = OmegaConf.to_yaml(OmegaConf.create(self.to_flat()))
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)

    @classmethod
    def load(
        cls,
        path: Path,
        head: str | None = None,
        min_return: float | None = None,
        algorithm: str | None = None,
        complete: bool = False,
    ) -> "RunConfig":
        """Read YAML: any of the names that ``to_flat`` writes.

        Args:
          path: the file.
          head: whose recipe fills in what the file leaves open; the file's own head if None.
          min_return: whether that recipe is of the constrained form; the file's own if None.
          algorithm: which that recipe is for; the file's own if None.
          complete: whether the file must leave nothing open.

        Raises:
          SettingError: no such file, not YAML, an unknown name, or a value of the wrong type.
        """
        try:
            flat = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        except (OSError, UnicodeDecodeError) as error:
            raise SettingError(f"config must be a readable file; got {path} ({error})") from None
        except (YAMLError, OmegaConfBaseException) as error:
            reason = " ".join(str(error).split())
            raise SettingError(f"config must be YAML; {path}: {reason}") from None
        if not isinstance(flat, dict):
            raise SettingError(f"config must map names to values; {path} holds {flat!r}")

        missing = [name for name in cls().to_flat() if name not in flat]
        if complete and missing:
            raise SettingError(
                f"a run's configuration must hold every setting; {path} lacks "
                f"{', '.join(missing)}. Restore it"
            )
        for name in ("head", "algorithm"):
            if not isinstance(flat.get(name, ""), str):
                raise SettingError(f"{path}: {name} must be text; got {flat[name]!r}")
        head = head or flat.get("head")
        if min_return is None and _is_number(flat.get("min_return")):
            min_return = flat["min_return"]
        config = OmegaConf.structured(
            cls(*recipe_of(head, min_return, algorithm or flat.get("algorithm")))
        )
        settings = {
            field.name: (section, field.type)
            for section, owner in (("train", TrainConfig), ("hypers", Hypers), (None, cls))
            for field in dataclasses.fields(owner)
            if field.name not in ("train", "hypers")
        }
        for name, value in flat.items():
            if name not in settings:
                near = difflib.get_close_matches(str(name), settings, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(settings)}"
                raise SettingError(f"{path}: unknown setting {name!r}; {hint}")
            section, kind = settings[name]
            if isinstance(value, str) and ("${" in value or value == "???"):
                raise SettingError(f"{path}: {name} must be a plain value; got {value!r}")
            try:
                given = {section: {name: value}} if section else {name: value}
                config = OmegaConf.merge(config, given)
            except OmegaConfBaseException:
                raise SettingError(
                    f"{path}: {name} must be {_describe(kind)}; got {value!r}"
                ) from None
        return OmegaConf.to_object(config)


def _is_number(value) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _describe(kind) -> str:
    if kind == float | None:
        return "a number or null"
    if kind == int | None:
        return "a whole number or null"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    words[tuple[int, ...]] = "a list of widths"
    return words.get(kind, "a list of name=value texts")
