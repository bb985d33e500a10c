"""Weights files for torch: safetensors and files of torch.save, read without executing anything in them."""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from hyperflux.backends.torch.pickles import check_pickle
from hyperflux.errors import InputError
from hyperflux.io.archive import open_archive
from hyperflux.io.find_weights import find_weights, misfit, misfits
from hyperflux.io.safe_read import open_file
from hyperflux.io.weights_file import MAX_BYTES, check_size, max_bytes, require_readable

MAX_PICKLE = 1 << 24
"""Most bytes of the pickle in a file of torch.save, and of the list of its members: 100,000 tensors take less."""
PICKLES_OF_OLD = 5
"""Pickles before the numbers in a file of torch before 1.6: three about the file, the content, the order of numbers."""


def read_checkpoint(path: str, limit: int = MAX_BYTES) -> Any:
    """Read a file's content, tensors on the CPU: of safetensors a dictionary, of torch.save whatever was saved.

    Raises:
        InputError: The file is missing, larger than `limit` bytes, damaged, holds other objects than tensors and plain
            containers, or is a safetensors file with a dtype that can't be read.
    """
    check_size(path, limit)
    try:
        if path.endswith(".safetensors"):
            return _read_safetensors(path)
        _check_saved(path)
        with warnings.catch_warnings(action="ignore"):  # about old forms of files that can still be read
            return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        raise InputError(
            f"weights file {path}: not a readable safetensors file or torch.save file of tensors alone (nothing else "
            "is read, for safety); save the model's state_dict() by itself"
        ) from error
    except Exception as error:  # the readers raise whatever they met in the file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"weights file {path}: not a readable safetensors file or torch.save file ({reason})"
        ) from error


def _read_safetensors(path: str) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (not a dictionary)
            require_readable(path, name, file.get_slice(name).get_dtype())
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _check_saved(path: str) -> None:
    """Raise ValueError for a file of torch.save that asks for more than it holds, see `check_pickle`.

    It is a zip archive, or of old a few pickles and then the numbers.
    """
    if zipfile.is_zipfile(path):
        _check_archive(path)
        return
    with open_file(Path(path)) as file:
        for _ in range(PICKLES_OF_OLD):
            if file.peek(1):
                check_pickle(file)


def _check_archive(path: str) -> None:
    """Raise ValueError for an archive that would unpack to more bytes than it has; torch.save never compresses."""
    with open_archive(Path(path), MAX_PICKLE) as archive:
        members = archive.infolist()
        packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        if packed or sum(member.file_size for member in members) > Path(path).stat().st_size:
            raise ValueError("it is packed, and torch.save does not pack")
        for member in members:
            if member.filename.lower().endswith(".pkl"):  # torch finds it by any case
                check_pickle(io.BytesIO(archive.read(member)))


def load_from(model: nn.Module, path: str, name: str) -> str:
    """Replace all parameters and buffers of `model` by those of a weights file.

    They may lie under keys of a training script and behind a prefix, see `hyperflux.io.find_weights`.

    Args:
        model: The network.
        path: The file.
        name: The network's name, for messages.

    Returns:
        Where in the file they were, in words; empty for the network's own names at the top.

    Raises:
        InputError: As `read_checkpoint`, with the size limit of this model, `find_weights` and `load_into`.
    """
    own = model.state_dict()
    content = read_checkpoint(path, max_bytes(sum(map(Tensor.numel, own.values()))))
    try:
        found = find_weights(content, _shapes(own), name, shape_of=_shape, same=_same)
        load_into(model, found.tensors, name)
    except InputError as error:
        raise InputError(f"weights file {path}: {error}") from error
    return found.place


def load_into(model: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Replace all parameters and buffers of `model`, which messages call `name`.

    Values are cast to the model's dtypes; sparse and quantized tensors become dense.

    Raises:
        InputError: Tensors are missing or unknown, or have another shape; or the model's dtype can't hold the values of
            one; nothing was replaced.
    """
    own = model.state_dict()
    if wrong := misfits({key: _shape(tensor) for key, tensor in tensors.items()}, _shapes(own)):
        raise misfit(name, wrong)
    model.load_state_dict({key: cast(key, tensors[key], own[key].dtype) for key in own})


def cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A dense copy with the same values in another dtype, up to the rounding of floating point numbers.

    Raises:
        InputError: The tensor has no values or no regular shape; it is complex, or its numbers are not of the kind of
            `dtype`; or values are not finite, or beyond the range of `dtype`.
    """
    kind = str(tensor.dtype).removeprefix("torch.")
    wanted = str(dtype).removeprefix("torch.")
    if tensor.is_meta:
        raise InputError(f"tensor {name} holds no values (device meta); save it from a model with weights")
    if tensor.is_nested:
        raise InputError(f"tensor {name} is nested, so it has no single shape; save a plain tensor")
    if type(tensor.data) is not Tensor:
        raise InputError(f"tensor {name} is a {type(tensor.data).__name__}; save a plain tensor")
    if tensor.is_complex() and not dtype.is_complex:
        raise InputError(f"tensor {name} holds {kind}, whose imaginary part would be lost; save real weights")
    if dtype.is_floating_point and not (tensor.is_floating_point() or tensor.is_quantized):
        raise InputError(f"tensor {name} holds {kind}, not floating point numbers; save it as {wanted}")
    try:
        dense = tensor.dequantize() if tensor.is_quantized else tensor
        dense = dense if dense.layout is torch.strided else dense.to_dense()
        result = dense.to(dtype)
        exact = result.is_floating_point() or dtype.is_complex or bool((result.double() == dense.double()).all())
    except RuntimeError as error:
        raise InputError(f"tensor {name} holds {kind}, which can't be read as {wanted}; save it so") from error
    if not exact:
        raise InputError(f"tensor {name} holds {kind}, with values that are not {wanted}; save it so")
    if not torch.isfinite(result).all():
        beyond = f"beyond {wanted}" if torch.isfinite(dense.double()).all() else "not finite"
        raise InputError(f"tensor {name} holds values that are {beyond}")
    return result


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _shape(tensor: Tensor) -> tuple[int, ...] | None:
    """The shape; None for a nested tensor, which has no single one."""
    return None if tensor.is_nested else tuple(tensor.shape)


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are known to be equal."""
    try:
        return one is other or torch.equal(one, other)
    except RuntimeError:  # a layout or dtype without comparison
        return False
