"""The format `sparse-safetensors`: a .safetensors file that stores only the places where a tensor is not zero.

Each tensor stands in the file as it is, or as two of one dimension, whichever takes fewer bytes:

NAME.indices    the flat places, row by row and rising, whose bits are not all zero; the narrowest unsigned integers
                that number the tensor's places
NAME.values     what stands there, in the tensor's own dtype

The header's metadata say which: `sparse-safetensors` is the version, `sparse` a JSON object that gives shape and dtype
of each tensor stored by its places, `sha256` the sum over all of it (`sparse_layout.checksum`). Zero goes by bits: −0.0
and every NaN come back as they were. Every library for .safetensors reads the parts; `read_sparse` joins them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from hyperflux.deploy import sparse_layout as layout
from hyperflux.deploy.bits import bits_of, dtype_name, from_bits, plain
from hyperflux.deploy.sparse_checks import joined
from hyperflux.deploy.sparse_layout import checksum, index_dtype
from hyperflux.errors import InputError
from hyperflux.io.atomic_write import write_atomic
from hyperflux.io.safe_read import read_file

MAX_BYTES = 1 << 36
"""Most bytes that a file may ask for, so that a damaged or hostile one does not take all memory."""


def write_sparse(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str] | None = None) -> None:
    """Write tensors of any shape to a file, whole or not at all; `notes` join the header's metadata.

    Raises InputError for tensors, names and notes that the format can't hold, RunError where the disk refuses.
    """
    write_atomic(path, sparse_content(tensors, notes))


def read_sparse(path: Path, max_bytes: int = MAX_BYTES) -> dict[str, Tensor]:
    """The tensors of a file by name, bit for bit as they were written, on the CPU.

    Nothing in the file is trusted. Raises InputError where it can't be read, is damaged, of another version, or asks
    for more than `max_bytes`, itself or unpacked; no memory is taken for that before.
    """
    try:
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        if (size := path.stat().st_size) > max_bytes:
            raise InputError(f"{path}: has {size:,} bytes, more than the {max_bytes:,} of max_bytes")
        return sparse_tensors(read_file(path, max_bytes), str(path), max_bytes)
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from error


def sparse_content(tensors: Mapping[str, Tensor], notes: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a file that holds `tensors`. Raises InputError for what the format can't hold."""
    _check_names(tensors)
    stored: dict[str, Tensor] = {}
    shapes: dict[str, dict[str, object]] = {}
    for name, tensor in tensors.items():
        whole = plain(name, tensor)
        parts = _parts(whole)
        taken = {
            name + layout.INDICES,
            name + layout.VALUES,
        } & tensors.keys()  # such a name would be two tensors': stay whole
        if taken or sum(part.nbytes for part in parts) >= whole.nbytes:
            stored[name] = whole
        else:
            stored[name + layout.INDICES], stored[name + layout.VALUES] = parts
            shapes[name] = {"shape": list(whole.shape), "dtype": dtype_name(whole.dtype)}
    table = json.dumps(shapes, sort_keys=True)
    own = {layout.VERSION_KEY: layout.VERSION, layout.TABLE_KEY: table, layout.SUM_KEY: checksum(table, stored)}
    return pack(stored, {**(notes or {}), **own})


def sparse_tensors(content: bytes, source: str, max_bytes: int = MAX_BYTES) -> dict[str, Tensor]:
    """The tensors of a file's bytes, as `read_sparse` gives them; `source` names the file in errors (InputError)."""
    try:
        return joined(content, max_bytes)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error


def pack(stored: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The bytes of an ordinary .safetensors file. Raises InputError for names and dtypes that it can't hold."""
    _check_names(stored)
    try:
        return save(dict(stored), dict(metadata))
    except (SafetensorError, ValueError, KeyError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"these tensors can't be written as .safetensors ({reason})") from error


def _check_names(tensors: Mapping[str, Tensor]) -> None:
    """Raise InputError for a name that is the format's own or no text that UTF-8 can hold."""
    for name in tensors:
        if name == "__metadata__" or name != name.encode("utf-8", "ignore").decode():
            raise InputError(f"tensor {name!a}: .safetensors files can't hold a tensor of this name; rename it")


def _parts(whole: Tensor) -> tuple[Tensor, Tensor]:
    """The places whose bits are not all zero, and what stands there."""
    bits = bits_of(whole)
    places = np.flatnonzero(bits)
    width = index_dtype(whole.numel())
    return from_bits(places.astype(f"u{width.itemsize}"), width), from_bits(bits[places], whole.dtype)
