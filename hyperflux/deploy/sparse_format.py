"""The format `sparse-safetensors`: a .safetensors file that stores only the elements of a tensor that are not zero.

Each tensor is stored as it is, or as two one-dimensional tensors, whichever takes fewer bytes:

NAME.indices    the flat, row-major, rising indices of the elements whose bits are not all zero, in the narrowest
                unsigned integers that can index the tensor
NAME.values     these elements, in the tensor's own dtype

The header's metadata say which: `sparse-safetensors` is the version, `sparse` a JSON object with shape and dtype of
each tensor that is stored as indices and values, `sha256` the `checksum` of the whole content. Zero means that all bits
are zero: -0.0 and every NaN come back as they were. Every safetensors library reads the parts; `read_sparse` joins
them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from hyperflux.deploy.tensor_bits import bits_of, dtype_name

VERSION = "1"
"""The format's version; a reader refuses every other."""
VERSION_KEY, TABLE_KEY, CHECKSUM_KEY = "sparse-safetensors", "sparse", "sha256"
"""Keys of the header's metadata."""
INDICES, VALUES = ".indices", ".values"
"""Suffixes of a tensor's name in the names of its two parts."""


def index_dtype(numel: int) -> torch.dtype:
    """Return the narrowest unsigned dtype that can index `numel` elements."""
    widths = (torch.uint8, torch.uint16, torch.uint32)
    return next((width for width in widths if numel <= 1 << 8 * width.itemsize), torch.uint64)


def checksum(table: str, stored: Mapping[str, Tensor]) -> str:
    r"""Return the SHA-256, in hexadecimal, of a file's content.

    It covers the table of shapes, then each stored tensor in the order of names: a line `\nNAME DTYPE SHAPE\n`, such as
    `fc1.bias float32 [300]`, and the bytes, little-endian and row-major. Text is UTF-8.

    Args:
        table: The table's JSON text.
        stored: The tensors as they stand in the file, contiguous and on the CPU.
    """
    total = hashlib.sha256(table.encode())
    for name, tensor in sorted(stored.items()):
        total.update(f"\n{name} {dtype_name(tensor.dtype)} {list(tensor.shape)}\n".encode())
        total.update(bits_of(tensor).astype(f"<u{tensor.itemsize}", copy=False).tobytes())
    return total.hexdigest()
