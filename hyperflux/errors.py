"""How a command ends early: wrong input (exit code 2), a run that failed (1), one that was told to stop (130, 143)."""

from __future__ import annotations

MAX_LINE = 1000
"""Characters of a message at most: what is cut out lies in its middle, the reason stands at its end."""
KEPT_START = 200


def one_line(text: str) -> str:
    """`text` on one line, without what a terminal would obey: other than printable characters are escaped."""
    words = " ".join(text.split())
    if len(words) > MAX_LINE:
        words = f"{words[:KEPT_START]} ... {words[KEPT_START + 5 - MAX_LINE :]}"
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in words)


class InputError(ValueError):
    """Wrong use or bad input. The message is one line: what is wrong, where, and the way out.

    `reported_elsewhere` says, of any error here, that another process of the same run tells it: one is enough.
    """

    reported_elsewhere = False

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class RunError(RuntimeError):
    """A run that began properly and could not be finished. The message is one line."""

    reported_elsewhere = False

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class WriteError(RunError):
    """The disk refused a file of a run. What was written before is there still."""


class Interrupted(Exception):
    """A run was told to stop by a signal, has written a checkpoint and stopped. The message says how it goes on."""

    reported_elsewhere = False

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal
