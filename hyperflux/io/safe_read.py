"""Safe reading: files of unknown origin are checked before they are read, so that none hangs or exhausts the memory.

Every reader of the package opens its file here. An OSError reports a problem with the file, in words in its `strerror`,
a ValueError one with its content. The reader adds the file's name and the way out.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import tomllib
from collections.abc import Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any

CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters, which a terminal may obey, and surrogates, which UTF-8 cannot encode."""
MAX_KEY_PARTS = 50
"""Most parts of a dotted key in TOML; those of our settings have two."""
_STRINGS = re.compile(
    r""""{3}(?:[^\\]|\\.)*?(?:"{3}|\Z)|'{3}.*?(?:'{3}|\Z)|"(?:[^"\\\n]|\\[^\n])*+"?|'[^'\n]*+'?|#[^\n]*+""", re.DOTALL
)
_DEEP_KEY = re.compile(rf"(?<![\w-])(?:[\w-]++[ \t]*+\.[ \t]*+){{{MAX_KEY_PARTS}}}")
MIN_READ = 1 << 16
"""Bytes read from a file whose size is given as 0, as in /proc."""


def open_file(path: Path) -> BufferedReader:
    """Open a regular file for reading. Raises OSError for folders, pipes, devices and impossible names."""
    try:
        _require_regular(os.stat(path), path)
        file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb")
    except ValueError as error:  # a NUL byte in the name
        raise OSError(errno.EINVAL, "no file can have this name", str(path)) from error
    try:
        _require_regular(os.fstat(file.fileno()), path)  # it may have been replaced since
    except OSError:
        file.close()
        raise
    return file


def _require_regular(found: os.stat_result, path: Path) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "is a pipe or a device, not a file", str(path))


def read_file(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file. Raises OSError, also for more than `max_bytes`, which are not read."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = b"" if size > max_bytes else file.read(min(max(size, MIN_READ), max_bytes) + 1)
    if max(size, len(content)) > max_bytes:
        found = f"has {size:,} bytes" if size else "has no end"
        raise OSError(errno.EFBIG, f"{found}, more than the {max_bytes:,} that such a file may have", str(path))
    return content


def read_text(path: Path, max_bytes: int) -> str:
    """The text of a UTF-8 file, without its byte order mark. Raises OSError as `read_file`, ValueError if not UTF-8."""
    return read_file(path, max_bytes).decode("utf-8-sig")


def inside(folder: Path, name: str) -> Path:
    """The path of `name` in a folder. Raises OSError for a link that leads out of the folder."""
    path = folder / name
    if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise OSError(errno.ELOOP, "is a link that leads out of its folder, so put the file itself there", str(path))
    return path


def parse_json(text: str) -> Any:
    """The value of a JSON text. Raises ValueError for invalid JSON, excessive nesting and duplicate keys."""
    try:
        value = json.loads(text)
        if isinstance(value, dict) and len(value) == text.count(":"):  # as many keys as there can be: none is twice
            return value
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML text. Raises ValueError for invalid TOML and excessive nesting.

    A dotted key of n parts takes the parser n² steps and as much memory, so it is refused beforehand.
    """
    if _DEEP_KEY.search(_STRINGS.sub("s", text)):
        raise ValueError(f"a key of more than {MAX_KEY_PARTS} parts")
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {shown(twice)} appears twice")
    return found


def shown(value: object, max_length: int = 100) -> str:
    """A value as shown in messages: its `repr`, cut to `max_length`, or its type if `repr` fails."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, too deep a nesting
        return f"a {type(value).__name__}"
    return text if len(text) <= max_length else f"{text[: max_length - 3]}..."
