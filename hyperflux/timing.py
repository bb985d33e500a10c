"""Interleaved timing: variants take turns, round after round, so that a slower machine slows all alike."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

TURN_SECONDS = 1e-3
"""Least length of a turn of short calls, so that reading the clock does not count."""

PROBES = 3
"""Tries that must all reach `TURN_SECONDS`: one alone may be long because it was interrupted."""

MAX_ROUNDS = 100_000
MAX_BATCH = 1 << 20
"""Most samples of a timed call."""


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one variant, and their ratio to the first variant's in the same round.

    `seconds` and `ratio` are medians over rounds, `lowest_ratio` and `highest_ratio` the extremes.
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
    """One turn of a variant: `run` makes `calls` calls.

    Attributes:
        run: Makes the calls.
        calls: Their number.
        rare: Work that happens once in `rare_calls` calls, too rarely for most turns to include it. It is timed after
            every turn, and its share is added to each call.
        rare_calls: See `rare`.
    """

    run: Callable[[], object]
    calls: int
    rare: Callable[[], object] | None = None
    rare_calls: int = 1

    @classmethod
    def of(cls, call: Callable[[], object], wait: Callable[[], None] = lambda: None) -> Turn:
        """A turn of as many calls as take `TURN_SECONDS` in each of `PROBES` tries, doubled until they do.

        One call, not timed, warms up before.

        Args:
            call: The call.
            wait: Returns when the device has finished its work.
        """
        call()
        turn = cls(call, 1)
        while any(_seconds(turn.run, wait) < TURN_SECONDS for _ in range(PROBES)):
            turn = cls(functools.partial(_repeat, call, 2 * turn.calls), 2 * turn.calls)
        return turn


def interleave(variants: Mapping[str, Turn], rounds: int, wait: Callable[[], None] = lambda: None) -> list[Timing]:
    """Time one turn of every variant per round, after a warm-up turn of each.

    Args:
        variants: Turns by name; ratios are to the first.
        rounds: Turns of each variant that are timed.
        wait: Returns when the device has finished its work; called before and after every turn.

    Returns:
        One timing per variant, in their order.
    """
    for turn in variants.values():
        _seconds_per_call(turn, wait)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, turn in variants.items():
            seconds[name].append(_seconds_per_call(turn, wait))
    result, first = [], seconds[next(iter(variants))]
    for name, times in seconds.items():
        ratios = sorted(own / base for own, base in zip(times, first, strict=True))
        result.append(Timing(name, statistics.median(times), statistics.median(ratios), ratios[0], ratios[-1]))
    return result


def fastest(turns: Sequence[Turn], rounds: int, wait: Callable[[], None] = lambda: None) -> list[float]:
    """Least seconds per call of each of some turns, which are taken round after round.

    What else a machine does only adds to a time: where a single long one would spoil a table, the least is better than
    the median.
    """
    seconds = [[_seconds_per_call(turn, wait) for turn in turns] for _ in range(rounds)]
    return [min(own) for own in zip(*seconds, strict=True)]


def _repeat(call: Callable[[], object], times: int) -> None:
    for _ in range(times):
        call()


def _seconds_per_call(turn: Turn, wait: Callable[[], None]) -> float:
    seconds = _seconds(turn.run, wait) / turn.calls
    return seconds if turn.rare is None else seconds + _seconds(turn.rare, wait) / turn.rare_calls


def _seconds(run: Callable[[], object], wait: Callable[[], None]) -> float:
    wait()
    started = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - started
