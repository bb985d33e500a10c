"""Decode a sparse-safetensors file from its bytes, trusting nothing in it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from hyperflux.deploy import sparse_format as layout
from hyperflux.deploy.sparse_format import checksum, index_dtype
from hyperflux.deploy.tensor_bits import STORABLE, Bits, bits_of, dtype_name, from_bits
from hyperflux.errors import InputError

MAX_DIMENSIONS = 64
"""Most dimensions of a tensor; torch has no more."""
MAX_ELEMENTS = (1 << 63) - 1
"""Most elements of a tensor, not counting dimensions of 0: what a 64-bit size can count."""


def decode(content: bytes, max_bytes: int) -> dict[str, Tensor]:
    """Return the tensors of a file's bytes.

    Args:
        content: The bytes.
        max_bytes: Most bytes that all tensors together may take.

    Returns:
        The tensors by name, in the order of names, each with its own memory.

    Raises:
        InputError: The bytes are no such file, damaged, of another version, or ask for more than `max_bytes`. The
            message lacks the file's name.
    """
    try:
        stored = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = header.get("__metadata__") or {}
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, MemoryError, RecursionError) as error:
        raise InputError(f"is not a readable .safetensors file ({_short(error)})") from error
    shapes = _read_table(metadata, stored)
    asked = sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes.values())
    if asked > max_bytes:
        raise InputError(f"asks for {asked:,} bytes of memory, more than max_bytes ({max_bytes:,})")
    dense = {name: tensor for name, tensor in stored.items() if not _is_part(name, shapes)}
    for name, tensor in dense.items():
        _check_shape(name, list(tensor.shape))
        if tensor.dtype == torch.bool:
            _check_bools(name, tensor)
    joined = {name: _join(name, *shapes[name], stored) for name in shapes}
    return dict(sorted({**dense, **joined}.items()))


def _read_table(metadata: Mapping[str, str], stored: Mapping[str, Tensor]) -> dict[str, tuple[list[int], torch.dtype]]:
    """Check version and checksum, and return shape and dtype of the tensors stored as indices and values."""
    version = metadata.get(layout.VERSION_KEY)
    if version is None:
        raise InputError("is an ordinary .safetensors file, not a sparse one; read it with a safetensors library")
    if version != layout.VERSION:
        raise InputError(
            f"has version {_short(version)} of sparse-safetensors; this hyperflux reads version {layout.VERSION}; "
            "install a newer one"
        )
    text = metadata.get(layout.TABLE_KEY, "")
    if metadata.get(layout.CHECKSUM_KEY) != checksum(text, stored):
        raise InputError("is damaged: its content does not match its checksum")
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"is damaged: its table of shapes is not JSON ({_short(error)})") from error
    if not isinstance(table, dict):
        raise InputError("is damaged: its table of shapes is not a JSON object")
    return {name: _read_entry(name, entry, stored) for name, entry in table.items()}


def _read_entry(name: str, entry: Any, stored: Mapping[str, Tensor]) -> tuple[list[int], torch.dtype]:
    """Return shape and dtype of one entry of the table, after checking that both parts are there and fit."""
    if not isinstance(entry, dict) or entry.keys() != {"shape", "dtype"} or entry["dtype"] not in STORABLE:
        raise _damaged(name, "has no shape or no known dtype in the table")
    _check_shape(name, entry["shape"])
    shape, dtype, numel = entry["shape"], getattr(torch, entry["dtype"]), math.prod(entry["shape"])
    if name in stored or name + layout.INDICES not in stored or name + layout.VALUES not in stored:
        raise _damaged(name, "is not stored as indices and values")
    indices, values = stored[name + layout.INDICES], stored[name + layout.VALUES]
    if values.dtype != dtype or indices.dtype != index_dtype(numel):
        raise _damaged(name, f"has parts of dtype {dtype_name(indices.dtype)} and {dtype_name(values.dtype)}")
    if indices.ndim != 1 or indices.shape != values.shape or len(indices) > numel:
        raise _damaged(name, f"has parts of shape {_short(list(indices.shape))} and {_short(list(values.shape))}")
    return shape, dtype


def _check_shape(name: str, shape: Any) -> None:
    """Raise InputError where a shape is not a list of sizes that torch can count."""
    is_valid = isinstance(shape, list) and len(shape) <= MAX_DIMENSIONS
    is_valid = is_valid and all(type(size) is int and 0 <= size <= MAX_ELEMENTS for size in shape)
    if not is_valid or math.prod(size for size in shape if size) > MAX_ELEMENTS:
        raise _damaged(name, f"has the impossible shape {_short(shape)}")


def _join(name: str, shape: list[int], dtype: torch.dtype, stored: Mapping[str, Tensor]) -> Tensor:
    """Join a tensor's indices and values. Its zeros take memory only where pages are touched."""
    indices, values = bits_of(stored[name + layout.INDICES]), stored[name + layout.VALUES]
    numel = math.prod(shape)
    if len(indices) and (int(indices[-1]) >= numel or not bool((indices[1:] > indices[:-1]).all())):
        raise _damaged(name, f"has indices that do not rise, or reach beyond its {numel:,} elements")
    if dtype == torch.bool:
        _check_bools(name, values)
    try:
        bits: Bits = np.zeros(numel, f"u{dtype.itemsize}")
    except (MemoryError, ValueError) as error:
        raise _damaged(name, f"asks for {numel * dtype.itemsize:,} bytes, more than this machine has") from error
    bits[indices.astype(np.int64)] = bits_of(values)
    return from_bits(bits, dtype).reshape(shape)


def _check_bools(name: str, tensor: Tensor) -> None:
    if (bits_of(tensor) > 1).any():
        raise _damaged(name, "has booleans other than 0 and 1")


def _is_part(name: str, shapes: Mapping[str, Any]) -> bool:
    return any(name.endswith(end) and name.removesuffix(end) in shapes for end in (layout.INDICES, layout.VALUES))


def _damaged(name: str, what: str) -> InputError:
    return InputError(f"is damaged: tensor {_short(name)} {what}")


def _short(value: object) -> str:
    """Return at most 80 characters on one line."""
    text = str(value) if isinstance(value, Exception) else repr(value)
    return " ".join(text.split())[:80]
