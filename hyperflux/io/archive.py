"""Zip archives of unknown origin: their list of members is read only where it is short."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hyperflux.io.safe_read import open_file


@contextmanager
def open_archive(path: Path, max_read: int) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive of which nothing longer than `max_read` bytes is read at once.

    The list of members is read at once, before its length can be asked for, and takes ten times its length in memory.

    Raises OSError as `open_file`, zipfile.BadZipFile, and ValueError for a longer piece, here or in the context.
    """
    with _ShortReads(open_file(path).detach(), max_read) as file, zipfile.ZipFile(file) as archive:
        yield archive


class _ShortReads(io.BufferedReader):
    """A file that refuses to read more than `most` bytes at once."""

    def __init__(self, raw: io.RawIOBase, most: int) -> None:
        super().__init__(raw)
        self._most = most

    def read(self, size: int | None = -1, /) -> bytes:
        """So many bytes, or all that follow. Raises ValueError if these are too many."""
        everything = size is None or size < 0
        content = super().read(self._most + 1 if everything else min(size or 0, self._most + 1))
        if len(content) > self._most:
            raise ValueError(f"a list or a header of more than {self._most:,} bytes")
        return content
