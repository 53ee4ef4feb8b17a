"""One reader and one writer of JSON for all result records.

A record is a frozen dataclass. Its fields have the names that the file has, and all of them must be
there. Only a field with the metadata ``OPTIONAL`` may be absent: it is left out where it is None.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from ape_jax.runs.metrics import write_json
from ape_jax.types import SettingError

Record = TypeVar("Record")


OPTIONAL = {"optional": True}
"""Metadata of a field that is absent from the file where it is None."""


def to_json(record: Any) -> Any:
    """Plain dictionaries, lists and numbers of a record, for ``json.dumps``."""
    if dataclasses.is_dataclass(record):
        values = {
            field.name: getattr(record, field.name)
            for field in dataclasses.fields(record)
            if not (field.metadata.get("optional") and getattr(record, field.name) is None)
        }
        return to_json(values)
    if isinstance(record, Mapping):
        return {name: to_json(value) for name, value in record.items()}
    if isinstance(record, list | tuple):
        return [to_json(value) for value in record]
    return record


def from_json(kind: Any, content: Any, name: str = "") -> Any:
    """The value of a type (a record, or that of a field) that ``to_json`` turned into this content.

    Raises:
      SettingError: a field is missing, unknown or of another type. The message says where, such as
        ``rows[2].gap``.
    """
    if dataclasses.is_dataclass(kind):
        return _record(kind, content, name)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _first_that_fits(arguments, content, name)
    if origin is tuple and isinstance(content, list):
        return tuple(
            from_json(arguments[0], value, f"{name}[{index}]")
            for index, value in enumerate(content)
        )
    if origin is dict and isinstance(content, dict):
        return {key: from_json(arguments[1], x, _join(name, key)) for key, x in content.items()}
    # JSON writes a float without a fraction as it likes; True is an int to Python.
    if kind is Any or type(content) is kind or (kind is float and type(content) is int):
        return content
    type_name = getattr(kind, "__name__", str(kind))
    raise SettingError(f"{name or 'the content'} must be of type {type_name}")


def _record(kind: Any, content: Any, name: str) -> Any:
    if not isinstance(content, dict):
        raise SettingError(f"{name or 'the content'} must be a mapping of names to values")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for unknown in content.keys() - fields.keys():
        raise SettingError(f"{_join(name, unknown)} is unknown")
    for field in fields.values():
        if field.name not in content and not field.metadata.get("optional"):
            raise SettingError(f"{_join(name, field.name)} is missing")
    hints = typing.get_type_hints(kind)
    return kind(
        **{key: from_json(hints[key], value, _join(name, key)) for key, value in content.items()}
    )


def _first_that_fits(kinds: tuple[Any, ...], content: Any, name: str) -> Any:
    *others, last = sorted(kinds, key=lambda kind: kind is not types.NoneType)
    for kind in others:
        try:
            return from_json(kind, content, name)
        except SettingError:
            pass
    return from_json(last, content, name)


def _join(name: str, field: str) -> str:
    return f"{name}.{field}" if name else field


def read(kind: type[Record], path: Path) -> Record:
    """Read a record from a JSON file.

    Raises:
      SettingError: the file is not readable, is not JSON, or does not hold such a record. The
        message names the file and the field.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(f"{path} must be a readable file ({error.strerror})") from None
    except ValueError:
        raise SettingError(f"{path} must hold JSON") from None
    try:
        return from_json(kind, content)
    except SettingError as error:
        raise SettingError(
            f"{path} must be a file of this version of ape_jax; {error}. Make it again"
        ) from None


def write(path: Path, record: Any) -> None:
    """Write a record to a JSON file, whole or not at all."""
    write_json(path, to_json(record))
