"""Messages about a name that does not exist, with the nearest that do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from hyperflux.errors import InputError
from hyperflux.io.safe_read import shown

MAX_NAME = 200
"""Characters of a name that are compared with those that exist."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for an unknown `name` of a `kind` ("data set", "model"), offering what lies nearest."""
    known = list(known)
    near = difflib.get_close_matches(name[:MAX_NAME], known, n=3, cutoff=0.5)
    offer = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
    return InputError(f"{kind} {shown(name)} is not known; {offer}")
