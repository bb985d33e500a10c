"""RUN/checkpoint/: the last two good checkpoints of a run."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from hyperflux.errors import InputError, RunError, WriteError
from hyperflux.io.atomic_write import write_atomic
from hyperflux.io.safe_read import open_file, read_file
from hyperflux.runs.checkpoints.file import HEADER_SIZE, Checkpoint, checksum

KEPT = 2
"""Good checkpoints that are kept: the older one is used if the newer one is damaged."""
MAX_BYTES = 1 << 36
"""Most bytes of a checkpoint."""
_NAME = re.compile(r"(\d{6,})-([0-9a-f]{64})\.safetensors")


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

    def create(self) -> None:
        """Create the folder; its presence marks an unfinished run. Raises WriteError if that fails."""
        try:
            self.path.mkdir(exist_ok=True)
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
            for path in self.path.iterdir():
                ours = _NAME.fullmatch(path.name) or path.name.endswith(".part")
                if ours and path not in self._good:
                    path.unlink()
        except OSError as error:
            raise WriteError(f"{self.path}: an old checkpoint cannot be removed ({error.strerror})") from error

    def last(self, announce: Callable[[str], None]) -> Checkpoint | None:
        """The last good checkpoint; None if none was written.

        Announces each damaged checkpoint in one line and uses the one before it.

        Raises:
            InputError: All checkpoints are damaged or unreadable, or the last good one has another format.
            RunError: The folder cannot be read.
        """
        newest: bytes | None = None
        files, good = self._files(), list[Path]()
        for path in reversed(files):
            content = _read(path)
            if checksum(content) != _checksum(path):
                announce(f"{path} is damaged" + ("" if good else "; the checkpoint before it is used"))
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
        """Remove the folder with all checkpoints. Raises WriteError if that fails."""
        try:
            shutil.rmtree(self.path)
        except OSError as error:
            raise WriteError(f"{self.path}: cannot be removed ({error.strerror})") from error

    def _files(self) -> list[Path]:
        """All checkpoints in order of number, good or damaged."""
        try:
            return sorted((path for path in self.path.iterdir() if _NAME.fullmatch(path.name)), key=_number)
        except OSError as error:
            raise RunError(f"{self.path}: cannot be read ({error.strerror})") from error


def _read(path: Path) -> bytes:
    """The file's bytes; empty if it cannot be read, for example from a broken sector, so that it counts as damaged."""
    try:
        with open_file(path) as file:
            header, size = int.from_bytes(file.read(HEADER_SIZE), "little"), os.fstat(file.fileno()).st_size
        # A file of zeros may take no room on the disk, however long it is.
        return read_file(path, MAX_BYTES) if 0 < header <= size else b""
    except OSError:
        return b""


def _number(path: Path) -> int:
    return int(path.name.partition("-")[0])


def _checksum(path: Path) -> str:
    return path.stem.partition("-")[2]
