"""Dataclasses from parsed JSON, with every value checked against its declared type."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable, Hashable, Mapping
from dataclasses import is_dataclass
from typing import Any, TypeVar

from hyperflux.io.safe_read import CONTROLS, shown

T = TypeVar("T")
Reader = Callable[[Any], Any]


def parse_dataclass(cls: type[T], values: Any) -> T:
    """A `cls` from a mapping with exactly its fields.

    Raises:
        ValueError: A field is missing, unknown, of another type, or a text with control characters; it is named.
    """
    readers = _readers(typing.cast(Hashable, cls))
    if not isinstance(values, Mapping) or values.keys() != readers.keys():
        wrong = sorted(set(values) ^ set(readers)) if isinstance(values, Mapping) else [shown(values, 40)]
        raise ValueError(f"not a {cls.__name__}: {', '.join(map(str, wrong))}")
    return cls(**{name: read(values[name]) for name, read in readers.items()})


@functools.cache
def _readers(cls: Any) -> dict[str, Reader]:
    """The reader of each field: the types are looked up once, not for every value of a long file."""
    return {name: _reader(name, kind) for name, kind in typing.get_type_hints(cls).items()}


def _reader(name: str, kind: Any) -> Reader:
    """A function that checks a value to be of type `kind` and returns what the field gets."""
    if is_dataclass(kind):
        return functools.partial(parse_dataclass, typing.cast(type, kind))
    fits, plain = _test(kind), float if kind is float else None

    def read(value: Any) -> Any:
        if type(value) is plain:
            return value
        if not isinstance(value, int | float):
            _refuse_controls(name, value)
        if not fits(value):
            raise ValueError(f"{name}: {shown(value, 40)} is not {getattr(kind, '__name__', kind)}")
        return value

    if typing.get_origin(kind) is not list:
        return read
    (part,) = typing.get_args(kind)
    read_item = _reader(name, part)
    return lambda value: [read_item(item) for item in value] if isinstance(value, list) else read(value)


def _refuse_controls(name: str, value: Any) -> None:
    for text in (*value.keys(), *value.values()) if isinstance(value, dict) else (value,):
        if isinstance(text, str) and CONTROLS.search(text):
            raise ValueError(f"{name}: {shown(text, 40)} holds a control character")


@functools.cache
def _test(kind: Any) -> Callable[[Any], bool]:
    """The function that says whether a value is of type `kind`."""
    if kind is Any:
        return lambda value: True
    match typing.get_origin(kind):
        case typing.Literal:
            known = typing.get_args(kind)
            return lambda value: value in known
        case types.UnionType:
            options = [_test(option) for option in typing.get_args(kind)]
            return lambda value: any(fits(value) for fits in options)
        case origin if origin is dict:
            first, second = map(_test, typing.get_args(kind))
            return lambda value: isinstance(value, dict) and all(first(k) and second(v) for k, v in value.items())
    if kind in (int, float):  # what exceeds int64 is neither a valid count nor a valid float
        return lambda value: abs(value) < 1 << 63 if type(value) is int else type(value) is kind
    return lambda value: type(value) is kind
