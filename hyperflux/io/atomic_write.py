"""Atomic writes: a file, or several that belong together, appear whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
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
    write_together(target.parent, {target.name: content})


def write_together(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files of one folder, each as `write_atomic`; none is renamed before all are on the disk.

    A kill between two renames leaves some new and some old, each of them whole.

    Args:
        folder: Where to.
        contents: The files' contents by name.

    Raises:
        WriteError: The disk refuses, or returns other bytes than were written; no file has changed.
    """
    parts = {folder / name: part_of(folder / name) for name in contents}
    target = folder
    try:
        try:
            for target, part in parts.items():
                _write_flushed(part, contents[target.name])
            for target, part in parts.items():
                part.replace(target)
            _flush_folder(folder)
        finally:
            for part in parts.values():
                with suppress(OSError):
                    part.unlink()
    except OSError as error:
        raise WriteError(f"{target}: cannot be written ({error.strerror})") from error


def part_of(target: Path) -> Path:
    """The file that holds a target's new content until it is renamed; a kill may leave it."""
    return target.with_name(f".{target.name}.part")


def _write_flushed(part: Path, content: bytes) -> None:
    part.unlink(missing_ok=True)
    with part.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if part.read_bytes() != content:
        raise OSError(errno.EIO, "what was written is not what the disk gives back")


def _flush_folder(path: Path) -> None:
    """Flush a folder's entries, so that a file's new name survives a loss of power; Windows opens no folders."""
    if (directory := getattr(os, "O_DIRECTORY", None)) is None:
        return
    descriptor = os.open(path, os.O_RDONLY | directory)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def new_folder(path: Path, files: Collection[str]) -> None:
    """Create a folder for these files, or accept an empty one; parts of the files, which a kill may leave, don't count.

    Raises InputError for any other.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if set(path.iterdir()) - {part_of(path / name) for name in files}:
            raise InputError(f"{path} is not empty; name another folder with --out or remove this one")
    except OSError as error:
        raise InputError(f"{path}: cannot be used as a folder ({error.strerror}); name one with --out") from error
