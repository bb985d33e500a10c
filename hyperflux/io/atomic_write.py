"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from hyperflux.errors import InputError, WriteError


def write_atomic(target: Path, content: bytes) -> None:
    """Write beside, flush, read back, rename, flush the folder: a reader sees the whole file or none.

    No link is followed. Neither a kill nor a loss of power leaves anything else, but for the file beside it, whose name
    ends in `.part`.
    Raises WriteError where the disk refuses, or does not give back what was written; then `target` is as it was.
    """
    beside = target.with_name(f".{target.name}.part")
    try:
        try:
            beside.unlink(missing_ok=True)
            with beside.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if beside.read_bytes() != content:
                raise WriteError(f"{target}: what was written is not what the disk gives back")
            beside.replace(target)
            _flush_folder(target.parent)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise WriteError(f"{target}: cannot be written ({error.strerror})") from error


def _flush_folder(path: Path) -> None:
    """Put a folder's entries on the disk: a file's new name lasts only then."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def new_folder(path: Path) -> None:
    """Create a folder, or take an empty one. Raises InputError where it can't be had."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise InputError(f"{path} is not empty; name another folder with --out or remove this one")
    except OSError as error:
        raise InputError(f"{path}: cannot be used as a folder ({error.strerror}); name one with --out") from error
