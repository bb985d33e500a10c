"""Checks of a saved state before anything of it is restored."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from hyperflux.errors import InputError
from hyperflux.io.ranges import as_integer, as_number


def entries(what: str, saved: Any, names: Collection[str]) -> Mapping[str, Any]:
    """A dictionary with exactly these names. Raises InputError, which lists those missing and those unexpected."""
    if not isinstance(saved, Mapping):
        raise InputError(f"{what}: is a {type(saved).__name__}, not a dictionary of {_listed(names)}")
    missing, unexpected = [n for n in names if n not in saved], [str(n) for n in saved if n not in names]
    if missing or unexpected:
        parts = [f"lacks {_listed(missing)}"] if missing else []
        parts += [f"has unexpected {_listed(unexpected)}"] if unexpected else []
        raise InputError(f"{what}: {' and '.join(parts)}; it was saved by something else, or damaged")
    return saved


def count(what: str, saved: Any) -> int:
    """A whole number of at least 0. Raises InputError otherwise."""
    number = as_integer(saved)
    if number is None or number < 0:
        raise InputError(f"{what}: {saved!r} is not a whole number of at least 0")
    return number


def finite(what: str, saved: Any) -> float:
    """A finite number. Raises InputError otherwise."""
    number = as_number(saved)
    if number is None or not math.isfinite(number):
        raise InputError(f"{what}: {saved!r} is not a finite number")
    return number


def _listed(names: Collection[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(list(names)[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
