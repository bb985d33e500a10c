"""Times measured in rotation: every variant has its turn, then the next round, so that all see the same machine."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hyperflux.errors import InputError
from hyperflux.io.safe_read import shown

TURN_SECONDS = 1e-3
"""Least length of a turn whose calls were counted here: the clock and its reading are small beside it."""

PROBES = 3
"""Tries that must all be long enough, so that an interruption of one does not leave turns too short."""

MAX_ROTATIONS = 100_000
MAX_BATCH = 1 << 20
"""Samples of a timed call."""


@dataclass(frozen=True)
class Timing:
    """Seconds a call of one variant, medians over rotations, and its ratio to the first variant's of the same rotation.

    `ratio` is the median of the rotations, `lowest_ratio` and `highest_ratio` are their extremes.
    """

    variant: str
    seconds: float
    ratio: float
    lowest_ratio: float
    highest_ratio: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Turn:
    """What a variant does when its turn comes; its time is that of `run`, divided by `calls`."""

    run: Callable[[], object]
    calls: int

    @classmethod
    def of(cls, call: Callable[[], object]) -> Turn:
        """So many calls that they take `TURN_SECONDS` in every one of `PROBES` tries, after one that is not counted."""
        call()
        turn = cls(call, 1)
        while any(_seconds(turn, lambda: None) < TURN_SECONDS for _ in range(PROBES)):
            turn = cls(functools.partial(_repeat, call, 2 * turn.calls), 2 * turn.calls)
        return turn


def check_count(name: str, value: int, most: int) -> None:
    """Raise InputError for a count of a timing that is below 1 or, as a slip of the keyboard, beyond `most`."""
    if value < 1:
        raise InputError(f"{name}: {value} is too few; give 1 or more")
    if value > most:
        raise InputError(f"{name}: {shown(value)} is too many; give {most:,} or fewer")


def interleave(variants: Mapping[str, Turn], rotations: int, wait: Callable[[], None] = lambda: None) -> list[Timing]:
    """Time turns of all variants in rotation, after one turn each that is not counted.

    `wait` returns when the device has done all its work; it is called before and after every turn.
    """
    for turn in variants.values():
        _seconds(turn, wait)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rotations):
        for name, turn in variants.items():
            seconds[name].append(_seconds(turn, wait) / turn.calls)
    result, first = [], seconds[next(iter(variants))]
    for name, times in seconds.items():
        ratios = sorted(own / base for own, base in zip(times, first, strict=True))
        result.append(Timing(name, statistics.median(times), statistics.median(ratios), ratios[0], ratios[-1]))
    return result


def _repeat(call: Callable[[], object], times: int) -> None:
    for _ in range(times):
        call()


def _seconds(turn: Turn, wait: Callable[[], None]) -> float:
    wait()
    started = time.perf_counter()
    turn.run()
    wait()
    return time.perf_counter() - started
