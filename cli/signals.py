"""Signals that stop a command, from its first moment to its last; training saves a checkpoint first."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

SIGNALLED = 128
"""A command that a signal ends exits with this plus the signal's number, as in shells."""
INTERRUPTED = SIGNALLED + signal.SIGINT
LINE = "hyperflux: interrupted"
_IMPORTING = "<frozen importlib._bootstrap>"


def catch_ctrl_c() -> None:
    """From here on Ctrl-C ends an import at once, in one line, and raises KeyboardInterrupt elsewhere.

    An exception within an import may be swallowed or turned into another one. Where Ctrl-C is ignored, it stays so.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        _handle(signal.SIGINT, _interrupt)


def ignore_stop_signals() -> None:
    """From here on nothing stops the command: its files are written, or its error is told, and it is about to end."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # Windows has no SIGHUP
            _handle(getattr(signal, name), signal.SIG_IGN)


def _interrupt(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTING:
            os.write(2, f"{LINE}\n".encode())
            os._exit(INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


def _handle(number: int, handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    with suppress(ValueError):  # in another thread than the main one, which alone gets signals
        signal.signal(number, handler)
