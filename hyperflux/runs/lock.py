"""One process a folder: a lock that the operating system gives back when its process ends, however that ends."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hyperflux.errors import InputError, RunError

LOCK = "lock"
"""The file in a run's folder that is locked while a process writes there; it names the process."""


@contextmanager
def locked(folder: Path, announce: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a folder, which is created if need be; afterwards the lock's file is gone.

    A lock left by a process of this host that is no longer there is taken over and announced in one line. Raises
    InputError where another process holds it, with that one's number and host, and where the folder can't be used.
    """
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _acquired(path)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be used as a run's folder ({error.strerror}); name one with --out"
        ) from error
    try:
        _take_over(path, file, announce)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(file)


def _acquired(path: Path) -> int:
    """The locked file's number. Raises InputError where another process has it."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            # A record lock belongs to this process alone: workers that outlive it for a moment do not hold it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and path.stat().st_ino == os.fstat(file).st_ino:
                return file
        except (BlockingIOError, PermissionError) as error:
            number, host = _owner(file)
            os.close(file)
            who = f"process {number} on {host}" if number else "another process"
            raise InputError(
                f"{path.parent}: in use by {who}; wait for it or name another folder with --out"
            ) from error
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # its last owner removed the file after it was opened here


def _take_over(path: Path, file: int, announce: Callable[[str], None]) -> None:
    """Write this process into the lock, in the place of one that is no longer there."""
    number, host = _owner(file)
    if number and host != socket.gethostname():
        raise InputError(
            f"{path.parent}: in use by process {number} on {host}; if that one is no longer there, remove {path}"
        )
    if number:
        announce(f"{path.parent}: the lock of process {number}, which is no longer there, is taken over")
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps({"process": os.getpid(), "host": socket.gethostname()}).encode(), 0)
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror})") from error


def _owner(file: int) -> tuple[int, str]:
    """Number and host of the process that the lock names; 0 where it names none."""
    try:
        content = json.loads(os.pread(file, os.fstat(file).st_size, 0))
        return int(content["process"]), str(content["host"])
    except (ValueError, KeyError, TypeError):
        return 0, ""
