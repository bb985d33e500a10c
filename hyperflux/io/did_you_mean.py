"""Errors for unknown names, with the nearest known ones."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from typing import Any

from hyperflux.errors import InputError
from hyperflux.io.safe_read import shown

MAX_NAME = 200
"""Characters of an unknown name that are compared with the known ones."""


def known_name(kind: str, name: Any, known: Collection[str]) -> str:
    """`name`, if it is one of the `known`. Raises InputError otherwise, also for what is no text."""
    if isinstance(name, str) and name in known:
        return name
    raise unknown_name(kind, name, known)


def unknown_name(kind: str, name: Any, known: Iterable[str]) -> InputError:
    """The error for an unknown `name` of a `kind` ("data set", "model"): it offers the nearest names, or all."""
    known = list(known)
    if not isinstance(name, str):
        return InputError(f"{kind}: {shown(name)} is not a name; known: {', '.join(known)}")
    near = difflib.get_close_matches(name[:MAX_NAME], known, n=3, cutoff=0.5)
    offer = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
    return InputError(f"{kind} {shown(name)} is not known; {offer}")
