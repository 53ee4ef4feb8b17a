"""The settings of a whole run, and the one way in which files, flags and presets become them."""

import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ape_jax.errors import SettingError
from ape_jax.settings.algorithms import ALGORITHMS, Hypers, PGConfig, PGHypers, TrainConfig
from ape_jax.settings.names import AlgorithmName
from ape_jax.settings.recipes import recipe

CHUNK = 50
"""Largest number of updates between two looks from the host."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything that decides the numbers of a run; ``config.yaml`` holds it."""

    train: TrainConfig = dataclasses.field(default_factory=PGConfig)
    hypers: Hypers = dataclasses.field(default_factory=PGHypers)
    seeds: int = 1
    """Number of runs that are trained side by side."""
    first_seed: int = 0
    """Number of the first seed. A seed gives the same run, however many are trained beside it."""
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
        train, hypers = self.train, self.hypers
        hypers_type = ALGORITHMS[train.algorithm][1]
        if not isinstance(hypers, hypers_type):
            raise SettingError(
                f"hypers must be {hypers_type.__name__} with algorithm={train.algorithm}; "
                f"got {type(hypers).__name__}"
            )
        if train.observer == "none" and hypers.min_return is not None:
            raise SettingError(
                f"min_return must be None with observer='none', where nothing pulls experts below "
                f"it; got {hypers.min_return}"
            )
        if train.constraint == "gate" and train.observer != "none" and hypers.min_return is None:
            raise SettingError(
                "constraint='gate' needs min_return, below which gates close; got none"
            )

    @property
    def chunk(self) -> int:
        """Updates between two looks from the host; checkpoints lie at multiples of it."""
        return CHUNK if self.save_every is None else min(CHUNK, self.save_every)

    def to_flat(self) -> dict[str, Any]:
        """All settings on one level, with the names of the flags, as plain values."""
        flat = {
            "algorithm": self.train.algorithm,
            **dataclasses.asdict(self.train),
            **dataclasses.asdict(self.hypers),
            **{name: getattr(self, name) for name in ("seeds", "first_seed", "save_every")},
        }
        return {n: list(value) if isinstance(value, tuple) else value for n, value in flat.items()}

    @classmethod
    def from_flat(cls, settings: Mapping[str, Any]) -> "RunConfig":
        """The run of settings by name; a setting that is left out keeps the default of its class.

        Raises:
          SettingError: an unknown name, a setting of the other algorithm, a value of the wrong
            type, or one that breaks a rule.
        """
        settings = _typed(settings)
        algorithm: AlgorithmName = settings.pop("algorithm", "pg")

        def take(owner: type) -> dict[str, Any]:
            names = {field.name for field in dataclasses.fields(owner)} & settings.keys()
            return {name: settings.pop(name) for name in names}

        config, hypers, others = (take(owner) for owner in (*ALGORITHMS[algorithm], cls))
        for name in settings:
            other = "ppo" if algorithm == "pg" else "pg"
            raise SettingError(
                f"{name} is a setting of algorithm={other}; got algorithm={algorithm!r}. Leave it "
                f"out, or choose algorithm={other}"
            )
        config_type, hypers_type = ALGORITHMS[algorithm]
        return cls(config_type(**config), hypers_type(**hypers), **others)

    def save(self, path: Path) -> None:
        """Write YAML, whole or not at all, from which ``load`` reads an equal configuration."""
        partial = path.with_name(path.name + ".partial")
        text = OmegaConf.to_yaml(OmegaConf.create(self.to_flat()))
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)

    @classmethod
    def load(cls, path: Path, complete: bool = False) -> "RunConfig":
        """Read a YAML file of settings; a recipe fills in what it leaves out.

        Raises:
          SettingError: the file cannot be read, leaves something out although it must be
            ``complete``, or as in ``from_flat``.
        """
        settings = read_settings(path)
        config = resolve(settings)
        missing = [name for name in config.to_flat() if name not in settings]
        if complete and missing:
            raise SettingError(
                f"a run's configuration must hold every setting; {path} lacks "
                f"{', '.join(missing)}. Restore it"
            )
        return config


def resolve(*layers: Mapping[str, Any]) -> RunConfig:
    """The run that layers of settings by name describe; later layers override earlier ones.

    The algorithm, the head and min_return found in them choose the recipe, which fills in what all
    of them leave out.

    Raises:
      SettingError: as in ``RunConfig.from_flat``.
    """
    settings = _typed({name: value for layer in layers for name, value in layer.items()})
    algorithm: AlgorithmName = settings.get("algorithm", "pg")
    head = settings.get("head", "mlp" if algorithm == "ppo" else "tabular")
    base = RunConfig(*recipe(head, settings.get("min_return"), algorithm))
    return RunConfig.from_flat({**base.to_flat(), **settings})


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a YAML file, by name, for a layer of ``resolve``.

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
    return _typed(flat, f"{path}: ")


def _field_docstrings(owner: type) -> dict[str, str]:
    """The docstring below each setting in a dataclass, its bases' included, in one line."""
    found = {}
    for base in reversed(owner.__mro__[:-1]):
        for field, text in itertools.pairwise(_classes(base.__module__)[base.__name__].body):
            match field, text:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(words))),
                ) if name in ALL_SETTINGS:
                    found[name] = " ".join(words.split())
    return found


@functools.cache  # inspect.getsource(class) would parse the whole file for each class.
def _classes(module: str) -> dict[str, ast.ClassDef]:
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


# PPO's fields come later and win where both algorithms have one, because they allow more values.
_OWNERS = (*itertools.chain(*zip(*ALGORITHMS.values(), strict=True)), RunConfig)

ALL_SETTINGS: dict[str, Any] = {"algorithm": AlgorithmName} | {
    field.name: field.type
    for owner in _OWNERS
    for field in dataclasses.fields(owner)
    if field.name not in ("train", "hypers")
}
"""Type of every setting, by name."""

HELP: dict[str, str] = {
    "algorithm": "The paper's policy gradient over whole episodes (pg), or clipped surrogates over "
    "rollouts of fixed length (ppo)."
}
"""Meaning of every setting, by name."""
for _owner in _OWNERS:
    HELP |= _field_docstrings(_owner)

_Flat = dataclasses.make_dataclass(
    "_Flat", [(name, kind, MISSING) for name, kind in ALL_SETTINGS.items()]
)


def _typed(settings: Mapping[str, Any], source: str = "") -> dict[str, Any]:
    """The settings with their values converted; messages begin with the source."""
    kinds = OmegaConf.structured(_Flat)
    typed = {}
    for name, value in settings.items():
        if name not in ALL_SETTINGS:
            near = difflib.get_close_matches(str(name), ALL_SETTINGS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(ALL_SETTINGS)}"
            raise SettingError(f"{source}unknown setting {name!r}; {hint}")
        if isinstance(value, str) and ("${" in value or value == "???"):
            raise SettingError(f"{source}{name} must be a plain value; got {value!r}")
        try:
            OmegaConf.update(kinds, name, value)
        except OmegaConfBaseException:
            raise SettingError(
                f"{source}{name} must be {_describe(ALL_SETTINGS[name])}; got {value!r}"
            ) from None
        typed[name] = kinds[name]
        if OmegaConf.is_config(typed[name]):
            typed[name] = tuple(typed[name])
    return typed


def _describe(kind) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    words = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        int | None: "a whole number or null",
        float | None: "a number or null",
        tuple[int, ...]: "a list of widths",
    }
    return words.get(kind, "a list of name=value texts")
