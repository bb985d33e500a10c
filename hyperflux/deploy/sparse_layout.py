"""What writing and reading of `sparse-safetensors` share: names, index widths, the sum over a file's content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from hyperflux.deploy.bits import bits_of, dtype_name

VERSION = "1"
"""Of the format; a reader refuses every other."""
VERSION_KEY, TABLE_KEY, SUM_KEY = "sparse-safetensors", "sparse", "sha256"
"""Keys of the header's metadata."""
INDICES, VALUES = ".indices", ".values"
"""What follows a tensor's name in the names of its two parts."""


def index_dtype(places: int) -> torch.dtype:
    """The narrowest unsigned integers that number `places` places from 0."""
    widths = (torch.uint8, torch.uint16, torch.uint32)
    return next((width for width in widths if places <= 1 << 8 * width.itemsize), torch.uint64)


def checksum(table: str, stored: Mapping[str, Tensor]) -> str:
    """SHA-256, in hexadecimal, of what a file says: its table, then the stored tensors by name.

    Of each tensor a line break, `NAME DTYPE SHAPE` (such as `fc1.bias float32 [300]`), a line break and its bytes,
    little-endian, row by row, as they stand in the file; all text is UTF-8.
    """
    total = hashlib.sha256(table.encode())
    for name, tensor in sorted(stored.items()):
        total.update(f"\n{name} {dtype_name(tensor.dtype)} {list(tensor.shape)}\n".encode())
        total.update(bits_of(tensor).astype(f"<u{tensor.itemsize}", copy=False).tobytes())
    return total.hexdigest()
