"""Atomic writes: a file appears whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from hyperflux.errors import InputError, WriteError


def write_atomic(target: Path, content: bytes) -> None:
    """Write a file so that a reader sees all of it, or what was there before, but never a part.

    The content goes to `.NAME.part` in the same folder and is flushed and read back. Then the file is renamed and the
    folder flushed. A link in the target's place is replaced, not followed. A kill or a loss of power leaves at most the
    `.part` file behind.

    Raises:
        WriteError: The disk refuses, or returns other bytes than were written; `target` is as it was.
    """
    part = target.with_name(f".{target.name}.part")
    try:
        try:
            part.unlink(missing_ok=True)
            with part.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if part.read_bytes() != content:
                raise WriteError(f"{target}: what was written is not what the disk gives back")
            part.replace(target)
            _flush_folder(target.parent)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise WriteError(f"{target}: cannot be written ({error.strerror})") from error


def _flush_folder(path: Path) -> None:
    """Flush a folder's entries, so that a file's new name survives a loss of power; Windows opens no folders."""
    if (directory := getattr(os, "O_DIRECTORY", None)) is None:
        return
    descriptor = os.open(path, os.O_RDONLY | directory)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def new_folder(path: Path) -> None:
    """Create a folder, or accept an empty one. Raises InputError for any other."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise InputError(f"{path} is not empty; name another folder with --out or remove this one")
    except OSError as error:
        raise InputError(f"{path}: cannot be used as a folder ({error.strerror}); name one with --out") from error
