"""RUN/checkpoint/: the last two good checkpoints of a run.

Only files with the names of checkpoints are read, written and removed here; whatever else lies there is left alone.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

from hyperflux.errors import InputError, RunError, WriteError
from hyperflux.io.atomic_write import write_atomic
from hyperflux.io.safe_read import inside, open_file, read_file
from hyperflux.runs.checkpoints.file import HEADER_SIZE, Checkpoint, checksum

KEPT = 2
"""Good checkpoints that are kept: the older one is used if the newer one is damaged."""
MAX_BYTES = 1 << 36
"""Most bytes of a checkpoint."""
_NAME = re.compile(r"[0-9]{6,12}-[0-9a-f]{64}\.safetensors")
_PART = re.compile(r"\.[0-9]{6,12}-[0-9a-z]+\.safetensors\.part")
"""A checkpoint that was not written to its end."""


class CheckpointFolder:
    """Writes checkpoints, keeps the last two good ones, and finds the last good one.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._good: list[Path] = []

    @property
    def has_good(self) -> bool:
        """Whether a good checkpoint was written or found."""
        return bool(self._good)

    def exists(self) -> bool:
        """Whether the folder is there.

        Raises:
            InputError: A link or a file is in its place: checkpoints would be written and removed elsewhere.
            RunError: That cannot be found out.
        """
        try:
            found = os.lstat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise self._unreadable(error) from error
        if not stat.S_ISDIR(found.st_mode):
            raise InputError(f"{self.path}: is a link or a file, not a folder; put the folder itself there")
        return True

    def create(self) -> None:
        """Create the folder unless it is there. Raises InputError as `exists`, WriteError if the disk refuses."""
        try:
            if not self.exists():
                self.path.mkdir()
        except OSError as error:
            raise WriteError(f"{self.path}: cannot be created ({error.strerror})") from error

    def write(self, checkpoint: Checkpoint) -> None:
        """Add a checkpoint, then remove all but the last two good ones.

        Raises WriteError if the disk refuses; the previous checkpoints stay.
        """
        content = checkpoint.to_bytes()
        number = 1 + max((_number(path) for path in self._files()), default=0)
        target = self.path / f"{number:06}-{checksum(content)}.safetensors"
        write_atomic(target, content)
        self._good = [*self._good, target][-KEPT:]
        try:
            for path in self._own_files():
                if path not in self._good:
                    path.unlink()
        except OSError as error:
            raise WriteError(f"{self.path}: an old checkpoint cannot be removed ({error.strerror})") from error

    def last(self, announce: Callable[[str], None], max_bytes: int = MAX_BYTES) -> Checkpoint | None:
        """The last good checkpoint; None if none was written.

        Announces each damaged checkpoint in one line and uses the one before it.

        Args:
            announce: Receives each line.
            max_bytes: Most bytes that a checkpoint of this run can have; a larger one is not read.

        Raises:
            InputError: All checkpoints are damaged or unreadable, the last good one has another format, or the folder
                is a link.
            RunError: The folder cannot be read.
        """
        self.exists()
        newest: bytes | None = None
        files, good = self._files(), list[Path]()
        for path in reversed(files):
            content, reason = _read(path, max_bytes)
            if checksum(content) != _checksum(path):
                announce(f"{path} is damaged{reason}" + ("" if good else "; the checkpoint before it is used"))
                continue
            good.insert(0, path)
            newest = content if newest is None else newest
        if newest is None:
            if files:
                raise InputError(f"{self.path}: every checkpoint is damaged; remove {self.path.parent} and start again")
            return None
        self._good = good[-KEPT:]
        try:
            return Checkpoint.from_bytes(newest)
        except InputError as error:
            raise InputError(f"{good[-1]}: {error}") from error

    def remove(self) -> None:
        """Remove all checkpoints, and the folder unless it holds something else. Raises WriteError if that fails."""
        try:
            for path in self._own_files():
                path.unlink()
            if not any(self.path.iterdir()):
                self.path.rmdir()
        except OSError as error:
            raise WriteError(f"{self.path}: cannot be removed ({error.strerror})") from error

    def foreign(self) -> list[Path]:
        """What the folder holds besides checkpoints. Raises InputError as `exists`, OSError."""
        return sorted(set(self.path.iterdir()) - set(self._own_files())) if self.exists() else []

    def _own_files(self) -> list[Path]:
        """All checkpoints, whole or not, in any order. Raises OSError."""
        with os.scandir(self.path) as entries:
            own = [entry for entry in entries if _NAME.fullmatch(entry.name) or _PART.fullmatch(entry.name)]
            return [self.path / entry.name for entry in own if not entry.is_dir(follow_symlinks=False)]

    def _files(self) -> list[Path]:
        """All checkpoints in order of number, good or damaged."""
        try:
            return sorted((path for path in self.path.iterdir() if _NAME.fullmatch(path.name)), key=_number)
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> RunError:
        return RunError(f"{self.path}: cannot be read ({error.strerror})")


def _read(path: Path, max_bytes: int) -> tuple[bytes, str]:
    """The file's bytes, and why there are none, in brackets, if it cannot be read, so that it counts as damaged."""
    try:
        with open_file(inside(path.parent, path.name)) as file:
            header, size = int.from_bytes(file.read(HEADER_SIZE), "little"), os.fstat(file.fileno()).st_size
        # A file of zeros may take no room on the disk, however long it is.
        return (read_file(path, max_bytes) if 0 < header <= size else b""), ""
    except OSError as error:
        return b"", f" ({error.strerror})"


def _number(path: Path) -> int:
    return int(path.name.partition("-")[0])


def _checksum(path: Path) -> str:
    return path.stem.partition("-")[2]
