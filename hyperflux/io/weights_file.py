"""Weights from a safetensors file: read without executing anything in it."""

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
"""Most bytes of a checkpoint of which nothing more is known."""
MAX_HEADER = 1 << 24
"""Most bytes of a safetensors header: a hundred thousand tensors have fewer."""
BYTES_A_WEIGHT = 32
"""Bytes of a checkpoint for each number of the network: as float64, with an average and an optimizer's two moments."""


def max_bytes(weights: int) -> int:
    """The largest checkpoint of a network with so many parameters and buffers."""
    return BYTES_A_WEIGHT * weights + 4 * MAX_HEADER


def check_size(path: str, most: int) -> None:
    """Look at a file before it is read.

    Raises InputError where it is missing, no file, larger than `most` bytes, or a safetensors file whose header is.
    """
    try:
        with open_file(Path(path)) as file:
            size = file.seek(0, 2)
            file.seek(0)
            header = int.from_bytes(file.read(8), "little")
    except FileNotFoundError as error:
        raise InputError(f"checkpoint {path}: no such file") from error
    except OSError as error:
        raise InputError(f"checkpoint {path}: {error.strerror}") from error
    if size > most:
        raise InputError(
            f"checkpoint {path}: has {size:,} bytes, more than the {most:,} that one of this network takes"
        )
    if path.endswith(".safetensors") and header > min(MAX_HEADER, size):
        raise InputError(
            f"checkpoint {path}: not a readable safetensors file or torch checkpoint (a header of {header:,} bytes)"
        )


def read_weights(path: str, most: int = MAX_BYTES) -> dict[str, NDArray[np.floating[Any]]]:
    """Tensors by name.

    Raises InputError where the file is missing, has more than `most` bytes, is no safetensors file, or holds other than
    floating point numbers.
    """
    check_size(path, most)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise InputError(f"checkpoint {path}: not a readable safetensors file ({error})") from error
    for name, tensor in tensors.items():
        if not np.issubdtype(tensor.dtype, np.floating):
            raise InputError(f"checkpoint {path}: tensor {name} holds {tensor.dtype}, not floating point numbers")
    return tensors
