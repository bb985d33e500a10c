"""Tensors as plain unsigned integers of the same width, so that comparing and copying go by bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyperflux.errors import InputError

Bits = NDArray[np.unsignedinteger[Any]]

STORABLE = (
    *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "complex64"),
    *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"),
)
"""Names of the dtypes that .safetensors files hold."""
_CARRIERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The torch integers, by their bytes, through which bits reach NumPy, which lacks bfloat16 and float8."""


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def plain(name: str, tensor: Tensor) -> Tensor:
    """A copy on the CPU, contiguous, with storage of its own.

    Raises InputError for what no .safetensors file holds: other dtypes, sparse and quantized layouts, no data at all.
    """
    kind = dtype_name(tensor.dtype)
    if kind not in STORABLE or tensor.layout is not torch.strided or tensor.is_meta:
        what = "without data" if tensor.is_meta else f"of dtype {kind} and layout {tensor.layout}"
        raise InputError(f"tensor {name!a}: {what} can't be stored; convert it to a dense tensor of a common dtype")
    return tensor.detach().resolve_conj().resolve_neg().cpu().clone(memory_format=torch.contiguous_format)


def bits_of(tensor: Tensor) -> Bits:
    """The bits of a contiguous tensor on the CPU, row by row: (numel,) unsigned integers, a view."""
    carried = tensor.reshape(-1).view(_CARRIERS[tensor.itemsize]).numpy()
    return carried.view(f"u{tensor.itemsize}")


def from_bits(bits: Bits, dtype: torch.dtype) -> Tensor:
    """The tensor (numel,) of these bits, a view; the opposite of `bits_of`."""
    carried = torch.from_numpy(bits.view(np.uint8 if bits.itemsize == 1 else f"i{bits.itemsize}"))
    return carried.view(dtype)
