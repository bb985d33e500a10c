"""The last resort: an error that nobody expected is one line, and its traceback a file."""

from __future__ import annotations

import os
import tempfile
import traceback
from pathlib import Path

from hyperflux.errors import one_line

UNEXPECTED = 70
"""Exit code of a command that such an error ended: the one that sysexits.h keeps for software."""


def unexpected_line(error: BaseException) -> str:
    """What to print about an error, after its traceback was written to a file that the line names."""
    kept, where = one_line(_described(error))[:500], _log(error)
    return f"hyperflux: unexpected {kept}; {where}"


def _described(error: BaseException) -> str:
    """An error's kind, message and file, as far as it can tell them."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


def _log(error: BaseException) -> str:
    """Write the traceback to a new file of the folder for temporary files, or else the current one; say which."""
    try:
        content = "".join(traceback.format_exception(error)).encode("utf-8", "backslashreplace")
        for folder in (None, os.curdir):
            if (path := _written(folder, content)) is not None:
                return f"please report it with {path}, which has the traceback"
    except Exception:  # whatever it is, it must not hide the first error
        pass
    return "please report it; no file could be written with the traceback"


def _written(folder: str | None, content: bytes) -> Path | None:
    """A new file with this content; None where there can be none."""
    try:
        number, name = tempfile.mkstemp(".log", "hyperflux-", folder)
    except OSError:
        return None
    try:
        with os.fdopen(number, "wb") as file:
            file.write(content)
    except OSError:
        Path(name).unlink(missing_ok=True)
        return None
    return Path(name)
