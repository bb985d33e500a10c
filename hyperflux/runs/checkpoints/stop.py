"""Ctrl-C and SIGTERM as a wish to stop after the step under way."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def wish_to_stop() -> Iterator[Callable[[], int | None]]:
    """Within it the first Ctrl-C or SIGTERM is only noted: the function given tells its number, or None.

    The next one acts as it would have without. For the main thread; processes that are forked within take no Ctrl-C
    and end on SIGTERM.
    """
    noted: list[int] = []
    owner, before = os.getpid(), {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner and number == signal.SIGINT:
            return  # a terminal sends it to every process, and the step under way needs its workers
        if os.getpid() == owner and not noted:
            noted.append(number)
        else:
            restore()
            signal.raise_signal(number)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: noted[0] if noted else None
    finally:
        restore()
