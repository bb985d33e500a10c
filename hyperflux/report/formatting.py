"""Numbers and lists as a person reads them."""

from __future__ import annotations

import math
from collections.abc import Sequence


def percent(fraction: float) -> str:
    """A fraction in percent, to three digits of its distance from 0 or 1: "0.0457 %", "12.3 %", "99.95 %"."""
    if not 0 < fraction < 1:
        return f"{100 * fraction:.4g} %"
    digits = max(0, 2 - math.floor(math.log10(100 * min(fraction, 1 - fraction))))
    text = f"{100 * fraction:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} %"


def accuracy(fraction: float) -> str:
    """An accuracy in percent, with two decimals."""
    return f"{100 * fraction:.2f} %"


def points(difference: float) -> str:
    """A difference of accuracies in percentage points, signed."""
    return f"{100 * difference:+.2f} points".replace("-", "−")


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, by size."""
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def listed(items: Sequence[str], max_items: int = 4) -> str:
    """ "a, b and c"; more than `max_items` end in a count: "a, b and 7 more"."""
    if len(items) > max_items:
        return f"{', '.join(items[: max_items - 1])} and {len(items) - max_items + 1} more"
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def counted(number: int, noun: str) -> str:
    """ "1 weight", "2,000 weights"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def shortened(name: str, max_length: int) -> str:
    """A name in printable ASCII, cut at its start: layers differ at the end of their names."""
    plain = "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in name)
    return plain if len(plain) <= max_length else "…" + plain[1 - max_length :]
