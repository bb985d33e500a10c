"""Hashes by which a resumed run knows that it has the data and the dense weights that it began with."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperflux.errors import InputError

SAMPLES = 64
"""Samples of a data set whose contents are hashed, evenly spread; labels and shapes are hashed whole."""


def spread(count: int) -> NDArray[np.intp]:
    """Indices of at most `SAMPLES` of `count` samples, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, max(0, count - 1), min(count, SAMPLES)).astype(np.intp))


def of_arrays(*arrays: NDArray[Any]) -> str:
    """A hash of the shapes, dtypes and contents of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def of_samples(inputs: NDArray[Any], labels: NDArray[Any]) -> str:
    """A hash of one part of a data set, inputs (samples, ...) and labels (samples,)."""
    return of_arrays(np.array(inputs.shape), inputs[spread(len(inputs))], labels)


def of_file(path: str) -> str:
    """A hash of all bytes of a file. Raises InputError where it can't be read."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
