"""Weights files: dense weights to start from, read from safetensors without executing anything in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from hyperflux.errors import InputError
from hyperflux.io.safe_read import open_file, read_file

MAX_BYTES = 1 << 36
"""Most bytes of a weights file for an unknown network."""
MAX_HEADER = 1 << 24
"""Most bytes of a safetensors header: a hundred thousand tensors need fewer."""
BYTES_PER_WEIGHT = 32
"""Bytes of a weights file per number of its network: float64, with a moving average and an optimizer's two moments."""
IN_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
"""Floating point dtypes of safetensors files, and of NumPy."""
FLOATING = (*IN_NUMPY, "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0")
"""All floating point dtypes of whole bytes."""
WHOLE = ("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")
"""Integers and bools."""
COMPLEX = ("C64", "C128")


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


def require_readable(path: str, name: str, kind: str) -> None:
    """Raise InputError for a tensor of a safetensors file whose dtype holds no numbers that a weight could take.

    Args:
        path: The file.
        name: The tensor.
        kind: The dtype's name in the format.
    """
    where = f"weights file {path}: tensor {name} holds {kind}"
    if kind in COMPLEX:
        raise InputError(f"{where}, complex numbers, whose imaginary part would be lost; save real weights")
    if kind not in FLOATING and kind not in WHOLE:
        raise InputError(f"{where}, packed numbers that can't be read without their scales; save it as float32")


def read_weights(path: str, limit: int = MAX_BYTES) -> dict[str, NDArray[np.floating[Any]]]:
    """Read a safetensors file of floating point tensors, by name; bfloat16 becomes float32, with the same values.

    Raises:
        InputError: The file is missing, larger than `limit` bytes, damaged, or holds other than floating point numbers
            that NumPy knows.
    """
    check_size(path, limit)
    try:
        entries = deserialize(read_file(Path(path), limit))  # type: ignore[no-untyped-call]
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, OverflowError, MemoryError) as error:
        also = "" if path.endswith(".safetensors") else "; other kinds of files need --backend torch"
        raise InputError(f"weights file {path}: not a readable safetensors file ({error}){also}") from error
    return {name: _array(path, name, entry) for name, entry in entries}


def _array(path: str, name: str, entry: Mapping[str, Any]) -> NDArray[np.floating[Any]]:
    """One tensor, from what `safetensors.deserialize` gives."""
    kind, data = entry["dtype"], entry["data"]
    require_readable(path, name, kind)
    if kind in WHOLE:
        raise InputError(f"weights file {path}: tensor {name} holds {kind}, not floating point numbers")
    if kind == "BF16":  # the upper half of a float32
        values = (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    elif kind in IN_NUMPY:
        values = np.frombuffer(data, IN_NUMPY[kind])
    else:
        raise InputError(
            f"weights file {path}: tensor {name} holds {kind}, numbers that NumPy lacks; use --backend torch, or save "
            "it as float32"
        )
    return values.reshape(entry["shape"])
