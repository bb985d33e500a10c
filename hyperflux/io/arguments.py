"""Arguments that are no numbers: paths, functions, dictionaries; one error line for those of another type."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hyperflux.errors import InputError
from hyperflux.io.safe_read import shown


def as_path(name: str, value: Any) -> Path:
    """The path that a text or a path object stands for. Raises InputError for everything else."""
    if isinstance(value, str | os.PathLike) and isinstance(path := os.fspath(value), str):
        return Path(path)
    raise InputError(f"{name}: {shown(value)} is not a path; give a pathlib.Path or a text")


def require_callable(name: str, value: Any, what: str) -> None:
    """Raise InputError unless the value can be called, and is no class; `what` says which function is wanted."""
    if isinstance(value, type):
        raise InputError(f"{name}: {kind_of(value)} is not a function; give an object of it, or {what}")
    if not callable(value):
        raise InputError(f"{name}: {shown(value)} is not a function; give {what}")


def require_mapping(name: str, value: Any, what: str) -> None:
    """Raise InputError unless the value is a dictionary; `what` says which one is wanted."""
    if not isinstance(value, Mapping):
        raise InputError(f"{name}: {shown(value)} is not a dictionary; give {what}")


def kind_of(value: Any) -> str:
    """What a value is, in a few words: "a list", "the class SGD", "None"."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"
