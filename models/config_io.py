"""Configurations to and from plain dictionaries (JSON in run directories, TOML from users), every name checked."""

import dataclasses
import difflib
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

from ..errors import InputError

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """Return the tree as nested dictionaries of JSON values."""
    return dataclasses.asdict(config, dict_factory=_json_object)


def from_dict(cls: type[T], data: Any, where: str) -> T:
    """Build ``cls`` from nested dictionaries; absent fields keep their defaults.

    ``where`` names the source in messages. Raises InputError for an unknown field (with the nearest known one) or a
    value of the wrong type.
    """
    return _build(cls, data, where, "")


def merge(config: T, changes: dict[str, Any], where: str) -> T:
    """Return ``config`` with the fields in the nested dictionary ``changes`` replaced; raises as :func:`from_dict`."""
    return from_dict(type(config), _merged(to_dict(config), changes), where)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file of settings; raises InputError where it is missing or not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: cannot be read as TOML settings: {error}") from None


def difference(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """Return the fields in which two configurations of a class differ: dotted name to (old, new)."""
    found: dict[str, tuple[Any, Any]] = {}
    for field in dataclasses.fields(old):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if dataclasses.is_dataclass(before):
            found |= {f"{field.name}.{name}": pair for name, pair in difference(before, after).items()}
        elif before != after:
            found[field.name] = (before, after)
    return found


def _json_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in pairs}


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for name, value in changes.items():
        inner = out.get(name)
        out[name] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return out


def _build(cls: Any, data: Any, where: str, prefix: str) -> Any:
    if not isinstance(data, dict):
        raise InputError(f"{where}: {prefix.rstrip('.') or 'the file'} is {data!r}, expected a table of settings")
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    for name in data:
        if name not in names:
            nearest = difflib.get_close_matches(str(name), names, n=1, cutoff=0.0)[0]
            raise InputError(f"{where}: field {prefix}{name} is unknown; did you mean {prefix}{nearest}?")
    values = {name: _value(hints[name], value, where, prefix + name) for name, value in data.items()}
    try:
        return cls(**values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _value(hint: Any, value: Any, where: str, name: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where, name + ".")
    if typing.get_origin(hint) is Literal:
        allowed = typing.get_args(hint)
        if value not in allowed or isinstance(value, bool):
            raise InputError(f"{where}: {name} is {value!r}, expected one of {', '.join(map(str, allowed))}")
        return value
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        if value is None:
            return None
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise InputError(f"{where}: {name} is {value!r}, expected a list")
        return tuple(_value(typing.get_args(hint)[0], one, where, name) for one in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise InputError(f"{where}: {name} is {value!r}, expected {hint.__name__}")
    return value
