"""Errors that end a command: bad input (exit code 2), a failed run (1), a run stopped by a signal (130, 143)."""

from __future__ import annotations

MAX_LINE = 1000
"""Most characters of a message. A longer one is cut in its middle, since the reason stands at its end."""
KEPT_START = 200
"""Characters kept before the cut."""


def one_line(text: str) -> str:
    """`text` on one line of at most `MAX_LINE` characters; those that are not printable are escaped."""
    words = " ".join(text.split())
    if len(words) > MAX_LINE:
        words = f"{words[:KEPT_START]} ... {words[KEPT_START + 5 - MAX_LINE :]}"
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in words)


class InputError(ValueError):
    """Bad input or wrong use. The message is one line: what is wrong, where, and the way out."""

    reported_elsewhere = False
    """Whether another process of the same run reports this error, so that it is printed once; on all errors here."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class DataFileError(InputError):
    """A file of a data set cannot be read, or not as part of this data set; a run goes on once it is mended."""


class RunError(RuntimeError):
    """A run that started and could not be finished. The message is one line."""

    reported_elsewhere = False

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class WriteError(RunError):
    """A file of a run could not be written; earlier files are unharmed."""


class LostWorkerError(RunError):
    """A process that loads data for a run has ended; the run itself is whole, and can go on from its last step."""


class Interrupted(Exception):
    """A run that a signal stopped, after it wrote a checkpoint. The message names the command that continues it.

    `signal` is the signal's number.
    """

    reported_elsewhere = False

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal
