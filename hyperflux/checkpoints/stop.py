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

    The next one acts as it would have without. For the main thread; processes that are forked within are not touched.
    """
    noted: list[int] = []
    owner, before = os.getpid(), {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        first = os.getpid() == owner and not noted
        for each, handler in before.items():
            signal.signal(each, handler)
        if first:
            noted.append(number)
        else:
            os.kill(os.getpid(), number)

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: noted[0] if noted else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
