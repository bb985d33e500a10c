"""Recipes: complete settings of known experiments, one TOML file each, in this folder or the user's own."""

from __future__ import annotations

import os
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from hyperflux.errors import InputError
from hyperflux.io.did_you_mean import unknown_name
from hyperflux.io.safe_read import inside, parse_toml, read_text

MAX_BYTES = 1 << 18
"""Most bytes of a TOML file; all settings take two thousand."""


def names() -> list[str]:
    """The recipes of the package, sorted."""
    files = resources.files(__name__).iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def text(name: str) -> str:
    """The TOML text of one of the package's recipes. Raises InputError for an unknown name."""
    if name not in names():
        raise unknown_name("recipe", name, names())
    return resources.files(__name__).joinpath(f"{name}.toml").read_text(encoding="utf-8")


def summary(name: str) -> str:
    """What a recipe of the package is for: the comment in its first line."""
    return text(name).splitlines()[0].removeprefix("#").strip()


def load(name_or_file: str) -> dict[str, Any]:
    """Settings as nested tables, from a recipe's name or a TOML file such as a run's `config.toml`.

    Anything that ends in `.toml` or holds a `/` is a file. Raises InputError where it can't be read.
    """
    is_file = name_or_file.endswith(".toml") or "/" in name_or_file or os.sep in name_or_file
    return _parsed(Path(name_or_file)) if is_file else tomllib.loads(text(name_or_file))


def load_settings(folder: Path) -> dict[str, Any]:
    """The settings of the run in `folder`. Raises InputError where its config.toml can't be read or leads elsewhere."""
    try:
        return _parsed(inside(folder, "config.toml"))
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}") from error


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return parse_toml(read_text(path, MAX_BYTES))
    except OSError as error:
        raise InputError(f"recipe {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"recipe {path}: not valid TOML ({error})") from error
