"""The tensors of a sparse-safetensors file from its bytes, of which nothing is trusted."""

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

from hyperflux.deploy import sparse_layout as layout
from hyperflux.deploy.bits import STORABLE, Bits, bits_of, dtype_name, from_bits
from hyperflux.deploy.sparse_layout import checksum, index_dtype
from hyperflux.errors import InputError

MAX_DIMENSIONS = 64
"""Most dimensions of a tensor; torch has no more."""
MAX_PLACES = (1 << 63) - 1
"""Most elements of a tensor, not counting dimensions of 0, with which a size can be computed at all."""


def joined(content: bytes, max_bytes: int) -> dict[str, Tensor]:
    """The tensors of a file's bytes, each with memory of its own.

    Raises InputError, without the file's name, where the bytes are no such file, damaged, of another version, or ask
    for more than `max_bytes`.
    """
    try:
        stored = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = header.get("__metadata__") or {}
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, MemoryError, RecursionError) as error:
        raise InputError(f"is no readable .safetensors file ({_short(error)})") from error
    shapes = _table(metadata, stored)
    asked = sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes.values())
    if asked > max_bytes:
        raise InputError(f"asks for {asked:,} bytes of memory, more than the {max_bytes:,} of max_bytes")
    whole = {name: tensor for name, tensor in stored.items() if not _is_part(name, shapes)}
    for name, tensor in whole.items():
        _check_shape(name, list(tensor.shape))
        if tensor.dtype == torch.bool:
            _check_bools(name, tensor)
    spread = {name: _spread(name, *shapes[name], stored) for name in shapes}
    return dict(sorted({**whole, **spread}.items()))


def _table(metadata: Mapping[str, str], stored: Mapping[str, Tensor]) -> dict[str, tuple[list[int], torch.dtype]]:
    """Shape and dtype of the tensors stored by their places, checked; so is the sum over the file."""
    version = metadata.get(layout.VERSION_KEY)
    if version is None:
        raise InputError("is an ordinary .safetensors file, not a sparse one; read it as such")
    if version != layout.VERSION:
        known = f"this hyperflux reads version {layout.VERSION}"
        raise InputError(f"is of version {_short(version)} of sparse-safetensors, and {known}; install a newer one")
    text = metadata.get(layout.TABLE_KEY, "")
    if metadata.get(layout.SUM_KEY) != checksum(text, stored):
        raise InputError("is damaged: its content does not have the sum that it names")
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"its table of shapes is damaged ({_short(error)})") from error
    if not isinstance(table, dict):
        raise InputError("its table of shapes is none")
    return {name: _entry(name, entry, stored) for name, entry in table.items()}


def _entry(name: str, entry: Any, stored: Mapping[str, Tensor]) -> tuple[list[int], torch.dtype]:
    """One line of the table: shape and dtype of a tensor whose two parts are there and fit."""
    if not isinstance(entry, dict) or entry.keys() != {"shape", "dtype"} or entry["dtype"] not in STORABLE:
        raise _wrong(name, "has no shape and known dtype in the table")
    _check_shape(name, entry["shape"])
    shape, dtype, places = entry["shape"], getattr(torch, entry["dtype"]), math.prod(entry["shape"])
    if name in stored or name + layout.INDICES not in stored or name + layout.VALUES not in stored:
        raise _wrong(name, "should be stored as its two parts and is not")
    indices, values = stored[name + layout.INDICES], stored[name + layout.VALUES]
    if values.dtype != dtype or indices.dtype != index_dtype(places):
        raise _wrong(name, f"has parts of dtype {dtype_name(indices.dtype)} and {dtype_name(values.dtype)}")
    if indices.ndim != 1 or indices.shape != values.shape or len(indices) > places:
        raise _wrong(name, f"has parts of shape {_short(list(indices.shape))} and {_short(list(values.shape))}")
    return shape, dtype


def _check_shape(name: str, shape: Any) -> None:
    """Raise InputError where a shape is no list of sizes that torch can count."""
    good = isinstance(shape, list) and len(shape) <= MAX_DIMENSIONS
    good = good and all(type(size) is int and 0 <= size <= MAX_PLACES for size in shape)
    if not good or math.prod(size for size in shape if size) > MAX_PLACES:
        raise _wrong(name, f"has the impossible shape {_short(shape)}")


def _spread(name: str, shape: list[int], dtype: torch.dtype, stored: Mapping[str, Tensor]) -> Tensor:
    """The tensor of two parts: zeros, which take memory only where they are touched, and the values in their places."""
    indices, values = bits_of(stored[name + layout.INDICES]), stored[name + layout.VALUES]
    places = math.prod(shape)
    if len(indices) and (int(indices[-1]) >= places or not bool((indices[1:] > indices[:-1]).all())):
        raise _wrong(name, f"has places that do not rise below {places:,}")
    if dtype == torch.bool:
        _check_bools(name, values)
    try:
        bits: Bits = np.zeros(places, f"u{dtype.itemsize}")
    except (MemoryError, ValueError) as error:
        raise _wrong(name, f"asks for {places * dtype.itemsize:,} bytes, more than this machine gives") from error
    bits[indices.astype(np.int64)] = bits_of(values)
    return from_bits(bits, dtype).reshape(shape)


def _check_bools(name: str, tensor: Tensor) -> None:
    if (bits_of(tensor) > 1).any():
        raise _wrong(name, "holds bytes that are no bool")


def _is_part(name: str, shapes: Mapping[str, Any]) -> bool:
    return any(name.endswith(end) and name.removesuffix(end) in shapes for end in (layout.INDICES, layout.VALUES))


def _wrong(name: str, what: str) -> InputError:
    return InputError(f"is damaged: tensor {_short(name)} {what}")


def _short(value: object) -> str:
    """At most 80 characters on one line, without what a terminal would obey."""
    text = str(value) if isinstance(value, Exception) else repr(value)
    return " ".join(text.split())[:80]
