"""Parameters of an environment set by name, as on a command line."""

import dataclasses
import difflib
import math
from collections.abc import Sequence
from typing import Any

from gymnax.environments.environment import EnvParams

from ape_jax.types import SettingError

Overrides = tuple[tuple[str, Any], ...]
"""Pairs of a parameter's name and its value, a flag or a number. The last of equal names counts."""

TIME_LIMIT = "max_steps_in_episode"
LONGEST = 100_000
"""Largest time limit: the random numbers of whole episodes are drawn beforehand, into memory."""


def parse_overrides(texts: Sequence[str]) -> Overrides:
    """Read ``name=value`` texts, such as ``max_steps_in_episode=200`` or ``ramping=false``.

    Raises:
      SettingError: a text without name or ``=``, or a value that is no number, true or false.
    """
    return tuple(map(_parse, texts))


def _parse(text: str) -> tuple[str, bool | int | float]:
    name, equals, value = (part.strip() for part in text.partition("="))
    if not name or not equals:
        raise SettingError(f"env-param must be name=value, such as {TIME_LIMIT}=200; got {text!r}")
    if value.lower() in ("true", "false"):
        return name, value.lower() == "true"
    for number in (int, float):
        try:
            return name, number(value)
        except ValueError:
            continue
    raise SettingError(f"env-param {name} must be a number, true or false; got {value!r}")


def replace(params: EnvParams, overrides: Overrides, env_id: str) -> EnvParams:
    """The parameters with some replaced, each in the type that it has.

    A flag may also be the text "true" or "false". Messages name the environment.

    Raises:
      SettingError: a parameter that does not exist, or a value that it cannot take.
    """
    fields = {field.name: field for field in dataclasses.fields(params)}
    values = {}
    for name, value in overrides:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            raise SettingError(
                f"env-param must be a parameter of {env_id}; got {name!r}. "
                f"{'Nearest' if near else 'Known'}: {', '.join(near or fields)}"
            )
        values[name] = _converted(name, value, _kind(fields[name], getattr(params, name)))
    return dataclasses.replace(params, **values)


def _kind(field: dataclasses.Field, default: Any) -> str:
    """The name of the field's type as annotated, which a default such as 1 of a float is not."""
    annotated = getattr(field.type, "__name__", str(field.type))
    return annotated if annotated in ("bool", "int", "float") else type(default).__name__


def _converted(name: str, value: Any, kind: str) -> bool | int | float:
    is_flag = str(value).lower() in ("true", "false")
    # Programs hold whole numbers in 32 bits.
    is_whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31
    is_number = is_whole or (isinstance(value, float) and not math.isnan(value))
    rules = {
        "bool": (is_flag, "true or false"),
        "int": (is_whole, "a whole number below 2^31"),
        "float": (is_number, "a number"),
    }
    if kind not in rules:
        raise SettingError(
            f"env-param must be a flag or a number; got {name!r}, which holds {kind}. "
            "Replace it in the parameters that make returns"
        )
    fits, rule = rules[kind]
    if name == TIME_LIMIT:  # A float in BernoulliBandit.
        fits = fits and 1 <= value <= LONGEST and value == int(value)
        rule = f"a whole number from 1 to {LONGEST}"
    if not fits:
        raise SettingError(f"env-param {name} must be {rule}; got {value!r}")
    if kind == "bool":
        return str(value).lower() == "true"
    return float(value) if kind == "float" else value
