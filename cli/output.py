"""Standard output and standard error that never fail: what they can't take is dropped, and told when the command ends.

What a command does is in its files. A reader that leaves (`| head -1`) or a full disk behind `>` must not cost it.
"""

from __future__ import annotations

import io
import os
import select
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

BROKEN_PIPE = 128 + 13
"""Exit code of a command whose reader has left: the one that shells give for SIGPIPE."""


class Lossy(io.FileIO):
    """The file of a standard stream. After the first error, which `error` keeps, nothing more is written."""

    error: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        """Write, waiting for a reader that is slow; returns the length of `data` also where it is dropped."""
        if self.error is None:
            try:
                while (written := super().write(data)) is None:
                    select.select([], [self], [])
                return written
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes


def take_over() -> None:
    """Put a `Lossy` file behind both streams; a character that a stream's encoding lacks is printed as "?".

    A standard stream that is closed gets the null device: its number would go to the next file that is opened.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, io.TextIOWrapper(io.FileIO(os.devnull, "w"), encoding="utf-8", errors="replace"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.flush()
            setattr(sys, name, _over_lossy(stream))


def _over_lossy(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    raw = _raw(stream)
    if type(raw) is not io.FileIO:  # Windows' console, or what a test listens with
        stream.reconfigure(errors="replace")
        return stream
    file = Lossy(raw.fileno(), "wb", closefd=False)
    unbuffered = stream.buffer is raw  # python -u
    return io.TextIOWrapper(
        file if unbuffered else io.BufferedWriter(file),
        encoding=stream.encoding,
        errors="replace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _raw(stream: TextIO) -> object:
    """The file behind a stream; None behind one that only a test has."""
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)


def exit_code(code: int) -> int:
    """Flush both streams and return the command's exit code, which is never 0 where output was lost.

    A line on standard error says what was lost, unless the reader had left, who knows.
    """
    for name in ("standard output", "standard error"):
        stream = sys.stdout if name == "standard output" else sys.stderr
        stream.flush()
        error = getattr(_raw(stream), "error", None)
        if isinstance(error, BrokenPipeError):
            code = code or BROKEN_PIPE
        elif error is not None:
            code = code or 1
            print(f"hyperflux: {name} can't be written ({error.strerror}); files are not affected", file=sys.stderr)
    return code
