"""One process per folder: a lock that the operating system frees when its process ends, however it ends.

The lock is taken on the open file `lock`, which names its owner. Windows lets nobody else read a locked byte, so the
library locks the first one, a line break, and the owner stands behind it.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import lock_descriptor

from hyperflux.errors import InputError, RunError

LOCK = "lock"
"""The file in a run's folder that is locked while a process writes there; it names the process."""
MAX_OWNER = 4096
"""Bytes that are read of a lock: number and host of a process take fewer."""
_held: set[int] = set()
"""Descriptors of the locks that this process holds."""


@contextmanager
def locked(folder: Path, announce: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a folder, which is created if need be; the lock's file is gone afterwards.

    A lock left by a process of this host that has ended is taken over and announced in one line. Forked children do not
    hold the lock, so workers that outlive the process for a moment do not keep the folder locked.

    Raises:
        InputError: Another process holds the lock, which the message names with its host, or the folder cannot be used.
        RunError: The lock's file cannot be written.
    """
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _acquire(path)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be used as a run's folder ({error.strerror}); name one with --out"
        ) from error
    _held.add(file)
    remove = False
    try:
        _take_over(path, file, announce)
        remove = True
        yield
    finally:
        if file in _held:  # not in a forked child, whose parent still runs
            _held.remove(file)
            _release(path, file, remove)


def _acquire(path: Path) -> int:
    """The descriptor of the locked file. Raises InputError where another process holds it, OSError."""
    no_link = getattr(os, "O_NOFOLLOW", 0)  # what a link leads to would be overwritten
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | no_link, 0o644)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise OSError(errno.EINVAL, f"its {LOCK} is a pipe or a device, not a file")
            if not lock_descriptor(file, blocking=False):
                number, host = _owner(file, start=1)
                who = f"process {number} on {host}" if number else "another process"
                raise InputError(f"{path.parent}: in use by {who}; wait for it or name another folder with --out")
            if _is_at(path, file):
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # its last owner removed the file after it was opened here


def _is_at(path: Path, file: int) -> bool:
    """Whether a path still names an open file; always on Windows, where an open file cannot be removed."""
    with suppress(FileNotFoundError):
        return os.name == "nt" or os.path.samestat(path.stat(), os.fstat(file))
    return False


def _take_over(path: Path, file: int, announce: Callable[[str], None]) -> None:
    """Write this process into the lock, in the place of one that has ended."""
    number, host = _owner(file, start=0)
    if number and host != socket.gethostname():
        raise InputError(
            f"{path.parent}: in use by process {number} on {host}; if that one is no longer there, remove {path}"
        )
    if number:
        announce(f"{path.parent}: the lock of process {number}, which is no longer there, is taken over")
    content = "\n" + json.dumps({"process": os.getpid(), "host": socket.gethostname()})
    try:
        os.ftruncate(file, 0)
        os.lseek(file, 0, os.SEEK_SET)
        os.write(file, content.encode())
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror})") from error


def _owner(file: int, start: int) -> tuple[int, str]:
    """Number and host of the process that the lock names behind `start` bytes; 0 where it names none."""
    try:
        os.lseek(file, start, os.SEEK_SET)
        content = json.loads(os.read(file, MAX_OWNER))
        return int(content["process"]), str(content["host"])
    except (ValueError, KeyError, TypeError):
        return 0, ""


def _release(path: Path, file: int, remove: bool) -> None:
    """Remove the lock's file, then free the lock, so that nobody takes a lock whose file is about to go.

    Windows removes no open file; there the order is reversed, and whoever has opened the file by then keeps it.
    """
    if remove:
        with suppress(OSError):  # of a folder that may not be changed any more, or is gone
            path.unlink(missing_ok=True)
    os.close(file)
    if remove and os.name == "nt":
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _free_in_child() -> None:
    """Close what a forked child inherits: the lock belongs to its parent, and ends with it."""
    while _held:
        os.close(_held.pop())


if fork_hook := getattr(os, "register_at_fork", None):
    fork_hook(after_in_child=_free_in_child)
