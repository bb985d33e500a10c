"""Numbers that a user sets: their type and range, checked once, with one error line each.

Any integer type counts as an int and any real scalar as a float (NumPy's, torch's), but neither counts as the other. A
bool is not a number. NaN and the infinities are in no range. Every function returns the plain Python number.
"""

from __future__ import annotations

import math
import operator
from typing import Any

from hyperflux.errors import InputError
from hyperflux.io.safe_read import shown

MAX_INTEGER = (1 << 63) - 1
"""Largest integer of TOML, NumPy and torch."""


def as_integer(value: Any) -> int | None:
    """The int that an integer of any type stands for; None for everything else, bools and floats included."""
    if not _is_real_scalar(value):
        return None
    try:
        return operator.index(value)
    except (TypeError, RuntimeError):  # a tensor without values
        return None


def as_number(value: Any) -> float | None:
    """The float that a real scalar of any type stands for; None for everything else, bools and strings included."""
    if not _is_real_scalar(value) or not hasattr(value, "__float__"):
        return None
    try:
        return float(value.detach() if hasattr(value, "detach") else value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None


def as_bool(value: Any) -> bool | None:
    """The bool that a bool of Python, NumPy or torch stands for; None for everything else."""
    if not _is_bool(value) or getattr(value, "ndim", 0) != 0 or getattr(value, "is_meta", False):
        return None
    return bool(value)


def true_or_false(name: str, value: Any) -> bool:
    """A bool. Raises InputError for everything else, whatever its truth."""
    if (whether := as_bool(value)) is None:
        raise InputError(f"{name}: {shown(value)} is neither True nor False")
    return whether


def whole_number(name: str, value: Any, least: int, most: int | None = MAX_INTEGER) -> int:
    """An integer of at least `least` and at most `most`, if any. Raises InputError otherwise."""
    number = _integer(name, value, least)
    if number < least:
        raise InputError(f"{name}: {shown(number)} is not a whole number of at least {least}")
    if most is not None and number > most:
        raise InputError(f"{name}: {shown(number)} is too large; give a whole number of at most {most}")
    return number


def integer_in(name: str, value: Any, least: int, most: int) -> int:
    """An integer in [least, most]. Raises InputError, which names the end that it lies beyond."""
    number = _integer(name, value, least)
    if not least <= number <= most:
        side = f"at least {least}" if number < least else f"at most {most}"
        raise InputError(f"{name}: {shown(number)} is out of range; give a number {side}")
    return number


def count_in(name: str, value: Any, least: int, most: int, option: str = "") -> int:
    """A count in [least, most]. Raises InputError, which says how many to give, and by which `option`, if any."""
    number = _integer(name, value, least)
    give = f"give {option}".rstrip()
    if number < least:
        raise InputError(f"{name}: {shown(number)} is too few; {give} {least} or more")
    if number > most:
        raise InputError(f"{name}: {shown(number)} is too many; {give} {most} or fewer")
    return number


def number_in(name: str, value: Any, low: float, high: float = math.inf, ends: str = "[)", way: str = "") -> float:
    """A finite number between `low` and `high`; `ends` are brackets as in mathematics, "[" and "]" include the end.

    Raises InputError otherwise, with the `way` out: the range, unless another is given.
    """
    number = as_number(value)
    if number is not None and math.isfinite(number):
        from_low = number > low or (number == low and ends[0] == "[")
        to_high = number < high or (number == high and ends[1] == "]")
        if from_low and to_high:
            return number
    side = "at least" if ends[0] == "[" else "above"
    range_ = f"{side} {low:g}" if high == math.inf else f"in {ends[0]}{low:g}, {high:g}{ends[1]}"
    is_number = number is not None or as_integer(value) is not None
    wrong = f"{value if number is not None else shown(value)} is {'out of range' if is_number else 'not a number'}"
    raise InputError(f"{name}: {wrong}; {way or f'give a number {range_}'}")


def fraction(name: str, value: Any) -> float:
    """A number between 0 and 1, both excluded. Raises InputError otherwise; percent are recognised."""
    number = as_number(value)
    if number is not None and 0 < number < 1:
        return number
    hint = f"; for {number:g} % give {number / 100:g}" if number is not None and 1 < number < 100 else ""
    given = shown(value) if number is None else value
    raise InputError(f"{name}: {given} is not a fraction between 0 and 1 (both excluded){hint}")


def _integer(name: str, value: Any, least: int) -> int:
    if (number := as_integer(value)) is not None:
        return number
    real = as_number(value)
    if real is not None and real.is_integer():
        raise InputError(f"{name}: {shown(value)} is a float; give a whole number of at least {least} as an int")
    raise InputError(f"{name}: {shown(value)} is not a whole number of at least {least}")


def _is_bool(value: Any) -> bool:
    """Whether a value is a bool of Python, NumPy or torch; torch need not be loaded to ask."""
    return isinstance(value, bool) or "bool" in str(getattr(value, "dtype", ""))


def _is_real_scalar(value: Any) -> bool:
    """Whether a value can be a real number: no bool, complex number, text, date or array with dimensions."""
    if isinstance(value, str | bytes) or _is_bool(value) or getattr(value, "ndim", 0) != 0:
        return False
    dtype = getattr(value, "dtype", None)
    return "complex" not in str(dtype) and getattr(dtype, "kind", "f") in "iufVO"
