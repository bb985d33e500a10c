"""Checks of saved arrays before anything is restored: names, shapes, dtypes and ranges. All raise ValueError."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperflux.io.safe_read import shown

Arrays = Mapping[str, NDArray[Any]]


def require_like(saved: Arrays, own: Arrays) -> None:
    """Every array of `own` has to be saved with its shape and dtype, and finite if it is finite here."""
    for name, array in own.items():
        found = saved.get(name)
        if found is None or found.shape != array.shape or found.dtype != array.dtype:
            has = "is missing" if found is None else f"is {found.dtype} of shape {found.shape}"
            raise ValueError(f"{name} {has}, not {array.dtype} of shape {array.shape}")
        if _is_finite(array) and not _is_finite(found):
            raise ValueError(f"{name} holds a value that is not finite")


def require_floats(saved: Arrays, name: str, shapes: Collection[tuple[int, ...]], dtype: np.dtype[Any]) -> None:
    """An array of this name has to be finite, of the dtype, and of one of the shapes."""
    array = _named(saved, name)
    if array.shape not in shapes or array.dtype != dtype:
        raise ValueError(f"{name} is {array.dtype} of shape {array.shape}, not {dtype} of shape {next(iter(shapes))}")
    if not _is_finite(array):
        raise ValueError(f"{name} holds a value that is not finite")


def whole(saved: Arrays, name: str, most: int) -> int:
    """The number of this name, a whole one from 0 to `most`."""
    array = _named(saved, name)
    if array.shape != () or array.dtype.kind not in "iu" or not 0 <= int(array) <= most:
        raise ValueError(f"{name} is {shown(array.tolist(), 40)}, not a whole number from 0 to {most:,}")
    return int(array)


def require_names(what: str, saved: Collection[str], known: Collection[str]) -> None:
    """Exactly these names have to be there."""
    if wrong := sorted(set(saved) ^ set(known)):
        raise ValueError(f"{what}: {shown(wrong[0], 80)} is {'unknown' if wrong[0] in saved else 'missing'}")


def _named(saved: Arrays, name: str) -> NDArray[Any]:
    if name not in saved:
        raise ValueError(f"{name} is missing")
    return saved[name]


def _is_finite(array: NDArray[Any]) -> bool:
    return array.dtype.kind not in "fc" or bool(np.isfinite(array).all())
