"""Weights files: dense weights to start from, read from safetensors without executing anything in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from hyperflux.errors import InputError
from hyperflux.io.safe_read import open_file

MAX_BYTES = 1 << 36
"""Most bytes of a weights file for an unknown network."""
MAX_HEADER = 1 << 24
"""Most bytes of a safetensors header: a hundred thousand tensors need fewer."""
BYTES_PER_WEIGHT = 32
"""Bytes of a weights file per number of its network: float64, with a moving average and an optimizer's two moments."""


def max_bytes(weights: int) -> int:
    """Most bytes of a weights file for a network with so many parameters and buffers."""
    return BYTES_PER_WEIGHT * weights + 4 * MAX_HEADER


def check_size(path: str, limit: int) -> None:
    """Check a weights file before it is read.

    Raises:
        InputError: It is missing, not a regular file, larger than `limit` bytes, or a safetensors file whose header
            is longer than `MAX_HEADER` or than the file.
    """
    try:
        with open_file(Path(path)) as file:
            size = file.seek(0, 2)
            file.seek(0)
            header = int.from_bytes(file.read(8), "little")
    except FileNotFoundError as error:
        raise InputError(f"weights file {path}: no such file") from error
    except OSError as error:
        raise InputError(f"weights file {path}: {error.strerror}") from error
    if size > limit:
        raise InputError(
            f"weights file {path}: has {size:,} bytes, more than the {limit:,} that one of this network takes"
        )
    if path.endswith(".safetensors") and header > min(MAX_HEADER, size):
        raise InputError(f"weights file {path}: not a readable safetensors file (its header has {header:,} bytes)")


def read_weights(path: str, limit: int = MAX_BYTES) -> dict[str, NDArray[np.floating[Any]]]:
    """Read a safetensors file of floating point tensors, by name.

    Raises:
        InputError: The file is missing, larger than `limit` bytes, damaged, or holds other than floating point numbers.
    """
    check_size(path, limit)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise InputError(f"weights file {path}: not a readable safetensors file ({error})") from error
    for name, tensor in tensors.items():
        if not np.issubdtype(tensor.dtype, np.floating):
            raise InputError(f"weights file {path}: tensor {name} holds {tensor.dtype}, not floating point numbers")
    return tensors
