"""Dataclasses from parsed JSON, with every value checked against its declared type."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Hashable, Mapping
from dataclasses import is_dataclass
from typing import Any, TypeVar

from hyperflux.io.safe_read import CONTROLS, shown

T = TypeVar("T")


def parse_dataclass(cls: type[T], values: Any) -> T:
    """A `cls` from a mapping with exactly its fields.

    Raises:
        ValueError: A field is missing, unknown, of another type, or a text with control characters; it is named.
    """
    hints = _hints(typing.cast(Hashable, cls))
    if not isinstance(values, Mapping) or set(values) != set(hints):
        wrong = sorted(set(values) ^ set(hints)) if isinstance(values, Mapping) else [shown(values, 40)]
        raise ValueError(f"not a {cls.__name__}: {', '.join(map(str, wrong))}")
    return cls(**{name: _value(name, values[name], kind) for name, kind in hints.items()})


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _value(name: str, value: Any, kind: Any) -> Any:
    """`value`, checked to be of type `kind`; lists and dataclasses item by item."""
    if is_dataclass(kind):
        return parse_dataclass(typing.cast(type, kind), value)
    if typing.get_origin(kind) is list and isinstance(value, list):
        (part,) = typing.get_args(kind)
        return [_value(name, item, part) for item in value]
    for text in (*value.keys(), *value.values()) if isinstance(value, dict) else (value,):
        if isinstance(text, str) and CONTROLS.search(text):
            raise ValueError(f"{name}: {shown(text, 40)} holds a control character")
    if not _fits(value, kind):
        raise ValueError(f"{name}: {shown(value, 40)} is not {getattr(kind, '__name__', kind)}")
    return value


def _fits(value: Any, kind: Any) -> bool:
    if kind is Any:
        return True
    match typing.get_origin(kind):
        case typing.Literal:
            return value in typing.get_args(kind)
        case types.UnionType:
            return any(_fits(value, option) for option in typing.get_args(kind))
        case origin if origin is dict:
            first, second = typing.get_args(kind)
            return isinstance(value, dict) and all(_fits(k, first) and _fits(v, second) for k, v in value.items())
    if type(value) is int:  # what exceeds int64 is neither a valid count nor a valid float
        return kind in (int, float) and abs(value) < 1 << 63
    return type(value) is kind
