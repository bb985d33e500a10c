"""Weights from a safetensors file: read without executing anything in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from hyperflux.errors import InputError


def read_checkpoint(path: str) -> dict[str, NDArray[np.floating[Any]]]:
    """Tensors by name.

    Raises InputError where the file is missing, is no safetensors file, or holds other than floating point numbers.
    """
    if not Path(path).is_file():
        raise InputError(f"checkpoint {path}: no such file")
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"checkpoint {path}: not a readable safetensors file ({error})".replace("\n", " ")) from error
    for name, tensor in tensors.items():
        if not np.issubdtype(tensor.dtype, np.floating):
            raise InputError(f"checkpoint {path}: tensor {name} holds {tensor.dtype}, not floating point numbers")
    return tensors
