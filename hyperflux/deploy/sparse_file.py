"""Write and read files of the format `sparse-safetensors`, described in `sparse_format`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from hyperflux.deploy import sparse_format as layout
from hyperflux.deploy.sparse_decoding import decode
from hyperflux.deploy.sparse_format import checksum, index_dtype
from hyperflux.deploy.tensor_bits import bits_of, dtype_name, from_bits, storable_copy
from hyperflux.errors import InputError
from hyperflux.io.arguments import as_path, require_mapping
from hyperflux.io.atomic_write import write_atomic
from hyperflux.io.ranges import whole_number
from hyperflux.io.safe_read import read_file, shown

MAX_BYTES = 1 << 36
"""Most bytes that a file may ask for, so that a damaged or hostile one can't take all memory."""


def write_sparse(path: Path | str, tensors: Mapping[str, Tensor], notes: Mapping[str, str] | None = None) -> None:
    """Write tensors to a file, whole or not at all.

    Args:
        path: The file; an existing one is replaced.
        tensors: Tensors of any shape, by name.
        notes: Further entries of the header's metadata.

    Raises:
        InputError: The format can't hold a tensor, name or note.
        RunError: The file can't be written.
    """
    write_atomic(as_path("path", path), sparse_content(tensors, notes))


def read_sparse(path: Path | str, max_bytes: int = MAX_BYTES) -> dict[str, Tensor]:
    """Read the tensors of a file, bit for bit as they were written.

    The file is not trusted: sizes are checked before memory is taken for them.

    Args:
        path: The file.
        max_bytes: Most bytes that the file may have, and most that its tensors may take.

    Returns:
        The tensors on the CPU, by name.

    Raises:
        InputError: The file can't be read, is damaged or too large, or has another version of the format.
    """
    path, max_bytes = as_path("path", path), whole_number("max_bytes", max_bytes, 0)
    try:
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        if (size := path.stat().st_size) > max_bytes:
            raise InputError(f"{path}: has {size:,} bytes, more than max_bytes ({max_bytes:,})")
        return sparse_tensors(read_file(path, max_bytes), str(path), max_bytes)
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from error


def sparse_content(tensors: Mapping[str, Tensor], notes: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes of a file; arguments and errors as in `write_sparse`."""
    require_mapping("tensors", tensors, "tensors by name")
    if notes is not None:
        require_mapping("notes", notes, "texts by name")
        if odd := [text for entry in notes.items() for text in entry if not isinstance(text, str)]:
            raise InputError(f"notes: {shown(odd[0])} is not a text; give texts by name")
    _check_names(tensors)
    stored: dict[str, Tensor] = {}
    shapes: dict[str, dict[str, object]] = {}
    for name, tensor in tensors.items():
        dense = storable_copy(name, tensor)
        indices, values = _split(dense)
        # A tensor of its own may already have a part's name.
        is_taken = not tensors.keys().isdisjoint({name + layout.INDICES, name + layout.VALUES})
        if is_taken or indices.nbytes + values.nbytes >= dense.nbytes:
            stored[name] = dense
        else:
            stored[name + layout.INDICES], stored[name + layout.VALUES] = indices, values
            shapes[name] = {"shape": list(dense.shape), "dtype": dtype_name(dense.dtype)}
    table = json.dumps(shapes, sort_keys=True)
    own = {layout.VERSION_KEY: layout.VERSION, layout.TABLE_KEY: table, layout.CHECKSUM_KEY: checksum(table, stored)}
    return dense_content(stored, {**(notes or {}), **own})


def sparse_tensors(content: bytes, source: str, max_bytes: int = MAX_BYTES) -> dict[str, Tensor]:
    """Return the tensors of a file's bytes; `source` names the file in errors. Otherwise as `read_sparse`."""
    try:
        return decode(content, max_bytes)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error


def dense_content(stored: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the bytes of an ordinary .safetensors file. Raises InputError for names and dtypes that it can't hold."""
    _check_names(stored)
    try:
        return save(dict(stored), dict(metadata))
    except (SafetensorError, ValueError, KeyError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"these tensors can't be written as .safetensors ({reason})") from error


def _check_names(tensors: Mapping[str, Tensor]) -> None:
    """Raise InputError for a name that the format reserves, or that UTF-8 can't encode."""
    for name in tensors:
        if not isinstance(name, str):
            raise InputError(f"tensors: the name {shown(name)} is not a text; rename this one")
        if name == "__metadata__" or name != name.encode("utf-8", "ignore").decode():
            raise InputError(f"tensor {name!a}: .safetensors files can't hold a tensor of this name; rename it")


def _split(dense: Tensor) -> tuple[Tensor, Tensor]:
    """Return flat indices and values of the elements whose bits are not all zero."""
    bits = bits_of(dense)
    indices = np.flatnonzero(bits)
    width = index_dtype(dense.numel())
    return from_bits(indices.astype(f"u{width.itemsize}"), width), from_bits(bits[indices], dense.dtype)
