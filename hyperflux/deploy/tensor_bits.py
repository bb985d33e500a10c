"""View tensors as unsigned integers of the same width, to compare and copy them bit by bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyperflux.errors import InputError
from hyperflux.io.arguments import kind_of

Bits = NDArray[np.unsignedinteger[Any]]

STORABLE = (
    *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "complex64"),
    *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"),
)
"""Names of the dtypes that .safetensors files can hold."""
_CARRIERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Torch integers by width in bytes. Bits reach NumPy through them, since it lacks bfloat16 and float8."""


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype's name without its module: `float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def storable_copy(name: str, tensor: Tensor) -> Tensor:
    """Return a contiguous copy on the CPU with its own storage.

    Args:
        name: The tensor's name, for the message.
        tensor: Any tensor.

    Returns:
        The copy, detached.

    Raises:
        InputError: A .safetensors file can't hold the dtype or layout, or the tensor has no data (device meta).
    """
    if not isinstance(tensor, Tensor):
        raise InputError(f"tensors: {name!a} is {kind_of(tensor)}, not a tensor")
    kind = dtype_name(tensor.dtype)
    if kind not in STORABLE or tensor.layout is not torch.strided or tensor.is_meta:
        what = "it has no data" if tensor.is_meta else f"it has dtype {kind} and layout {tensor.layout}"
        raise InputError(f"tensor {name!a} can't be stored: {what}; convert it to a dense tensor of a common dtype")
    return tensor.detach().resolve_conj().resolve_neg().cpu().clone(memory_format=torch.contiguous_format)


def bits_of(tensor: Tensor) -> Bits:
    """View the bits of a contiguous CPU tensor, in row-major order, as unsigned integers (numel,)."""
    carried = tensor.reshape(-1).view(_CARRIERS[tensor.itemsize]).numpy()
    return carried.view(f"u{tensor.itemsize}")


def from_bits(bits: Bits, dtype: torch.dtype) -> Tensor:
    """View bits as a tensor (numel,) of a dtype of the same width; the inverse of `bits_of`."""
    carried = torch.from_numpy(bits.view(np.uint8 if bits.itemsize == 1 else f"i{bits.itemsize}"))
    return carried.view(dtype)
