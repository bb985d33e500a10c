"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from hyperflux.errors import InputError, RunError


def write_whole(target: Path, content: bytes) -> None:
    """Write beside, flush, rename: a reader sees the whole file or none, and no link is followed.

    Raises RunError where the disk refuses.
    """
    beside = target.with_name(f".{target.name}.part")
    try:
        try:
            beside.unlink(missing_ok=True)
            with beside.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"{target}: cannot be written ({error.strerror})") from error


def new_folder(path: Path) -> None:
    """Create a folder, or take an empty one. Raises InputError where it can't be had."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise InputError(f"{path} is not empty; name another folder with --out or remove this one")
    except OSError as error:
        raise InputError(f"{path}: cannot be used as a folder ({error.strerror}); name one with --out") from error
