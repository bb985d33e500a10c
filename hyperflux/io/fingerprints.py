"""Hashes of data and weights files: a resumed run compares them with those it began with."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperflux.errors import InputError
from hyperflux.io.safe_read import open_file

SAMPLES = 64
"""Samples of a data set whose inputs are hashed, evenly spaced; of the others only labels and shapes are."""


def sample_indices(count: int) -> NDArray[np.intp]:
    """Indices of at most `SAMPLES` of `count` samples, evenly spaced from the first to the last."""
    return np.unique(np.linspace(0, max(0, count - 1), min(count, SAMPLES)).astype(np.intp))


def of_arrays(*arrays: NDArray[Any]) -> str:
    """SHA-256 of the dtypes, shapes and contents of arrays, in hexadecimal."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def of_samples(inputs: NDArray[Any], labels: NDArray[Any]) -> str:
    """SHA-256 of the training or test part of a data set, from inputs (samples, ...) and labels (samples,)."""
    return of_arrays(np.array(inputs.shape), inputs[sample_indices(len(inputs))], labels)


def of_file(path: str) -> str:
    """SHA-256 of a file's bytes. Raises InputError where it cannot be read."""
    try:
        with open_file(Path(path)) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
