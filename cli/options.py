"""Command-line options from the settings in `hyperflux.config`, and settings from the options given."""

from __future__ import annotations

import os
import sys
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from hyperflux.config import RunConfig
from hyperflux.errors import InputError
from hyperflux.gates.kinds import BUDGETS
from hyperflux.io.safe_read import CONTROLS, shown

F = TypeVar("F", bound=Callable[..., Any])


class PlainPath(click.Path):
    """A path that can be stored and printed: UTF-8, without control characters."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        """The path. Fails for other names."""
        if CONTROLS.search(str(value)):
            self.fail(_unprintable(str(value)), parameter, context)
        return super().convert(value, parameter, context)


def _unprintable(name: str) -> str:
    """Why a name can't be stored and printed, and the way out."""
    try:
        text = os.fsencode(name).decode()
    except UnicodeError:
        text = name
    if CONTROLS.search(text):
        return f"{shown(name)} holds a control character or is not UTF-8; rename it"
    encoding = sys.getfilesystemencoding()
    return f"{shown(text)} has characters that {encoding}, the encoding of this shell, lacks; set PYTHONUTF8=1"


def settings_options(*, without: Collection[str] = ()) -> Callable[[F], F]:
    """A decorator that adds an option to a command for every setting with a flag. Options default to None.

    Args:
        without: Settings to leave out, named as in a recipe: `seed`, `pruning.epochs`.
    """

    def decorate(command: F) -> F:
        for setting in reversed(list(_flagged(RunConfig, ()))):
            if ".".join(setting[0]) not in without:
                command = _option(*setting)(command)
        return command

    return decorate


def _option(path: tuple[str, ...], flag: str, kind: type, default: Any, text: str) -> Callable[[F], F]:
    shown = f"{text}  [default: {default}]" if default not in ("", (), None, False) else text
    several = typing.get_origin(kind) is tuple
    plain = str if several else next(iter(typing.get_args(kind)), kind)  # float of float | None
    return click.option(
        flag,
        "__".join(path),
        type=plain,
        is_flag=plain is bool,
        multiple=several,
        default=None,
        help=shown,
    )


def merged(tables: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The nested tables of a recipe, overridden by the options given; a budget replaces that of the recipe."""
    result = dict(tables)
    is_pattern = ":" in (given.get("gates") or "")
    if is_pattern or any(given.get(name) is not None for name in BUDGETS):
        result = {name: value for name, value in result.items() if name not in BUDGETS}
    for key, value in given.items():
        if value is not None and value != ():
            *section, name = key.split("__")
            if section:
                table = result.get(section[0], {})
                # The configuration refuses anything but a table, by name.
                result[section[0]] = {**table, name: value} if isinstance(table, Mapping) else table
            else:
                result[name] = value
    return result


def require_same_settings(stated: Mapping[str, Any], config: RunConfig, folder: Path) -> None:
    """Raise InputError if an option or a recipe sets something else than the run in `folder` has."""
    RunConfig.from_dict(stated)
    flags = {path: flag for path, flag, *_ in _flagged(RunConfig, ())}
    own = dict(_leaves(config.to_dict(), ()))
    for path, value in _leaves(stated, ()):
        value = list(value) if isinstance(value, tuple) else value
        if own[path] != value:
            raise InputError(
                f"{flags.get(path, '.'.join(path))}: {value!r} differs from the run in {folder}, which has "
                f"{own[path]!r}; leave it out, or start a new run in another folder"
            )


def _leaves(tables: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, value) of every setting in nested tables."""
    for name, value in tables.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value


def _flagged(settings: type, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str, type, Any, str]]:
    """(path, flag, type, default, help) of every setting with a flag, in the order of their declaration."""
    hints = typing.get_type_hints(settings)
    for setting in fields(settings):
        kind = hints[setting.name]
        if is_dataclass(kind):
            yield from _flagged(typing.cast(type, kind), (*path, setting.name))
        elif flag := setting.metadata.get("flag"):
            yield (*path, setting.name), flag, kind, setting.default, setting.metadata["help"]
