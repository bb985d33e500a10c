"""Weights files for torch: safetensors and files of torch.save, read without executing anything in them."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hyperflux.errors import InputError
from hyperflux.io.weights_file import MAX_BYTES, check_size, max_bytes

WRAPPERS = ("state_dict", "model")
"""Keys under which training scripts save the weights."""
PREFIXES = ("module.", "_orig_mod.")
"""Prefixes that DataParallel and torch.compile put before every name."""


def read_weights(path: str, limit: int = MAX_BYTES) -> dict[str, Tensor]:
    """Read tensors by name, on the CPU; wrappers and prefixes of training scripts are removed.

    Raises:
        InputError: The file is missing, larger than `limit` bytes, damaged, or holds other objects than tensors.
    """
    check_size(path, limit)
    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        _check_archive(path)
        with warnings.catch_warnings(action="ignore"):  # about old forms of files that can still be read
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"weights file {path}: not a readable safetensors file or torch.save file of tensors alone (nothing else "
            "is read, for safety); save the model's state_dict() by itself"
        ) from error
    except Exception as error:  # the readers raise whatever they met in the file
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"weights file {path}: not a readable safetensors file or torch.save file ({reason})"
        ) from error
    while inner := _wrapped(content):
        content = inner
    if not isinstance(content, Mapping) or not content or not all(map(_is_tensor, content.items())):
        raise InputError(f"weights file {path}: is not a state_dict of tensors")
    while prefix := next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in content)), None):
        content = {name.removeprefix(prefix): tensor for name, tensor in content.items()}
    return dict(content)


def _check_archive(path: str) -> None:
    """Raise ValueError for a file of torch.save, a zip archive, that would unpack to more bytes than it has.

    torch.save never compresses, and never writes a bytearray, which takes memory by its size alone.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        if packed or sum(member.file_size for member in members) > Path(path).stat().st_size:
            raise ValueError("it is packed, and torch.save does not pack")
        if any(b"bytearray" in archive.read(member) for member in members if member.filename.endswith(".pkl")):
            raise ValueError("it holds a bytearray")


def _wrapped(content: Any) -> Mapping[str, Any] | None:
    """The mapping that `content` keeps under one of `WRAPPERS`."""
    found = [content.get(key) for key in WRAPPERS] if isinstance(content, Mapping) else []
    return next((value for value in found if isinstance(value, Mapping)), None)


def _is_tensor(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def load_from(model: nn.Module, path: str, name: str) -> None:
    """Replace all parameters and buffers of `model` by those of a weights file; `name` names the model in messages.

    Raises:
        InputError: As `read_weights`, with the size limit of this model, and `load_into`.
    """
    load_into(model, read_weights(path, max_bytes(sum(map(Tensor.numel, model.state_dict().values())))), name)


def load_into(model: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Replace all parameters and buffers of `model`, which messages call `name`.

    Raises:
        InputError: A tensor is missing or unknown, has another shape, or is not finite; nothing was replaced.
    """
    own = model.state_dict()
    if odd := sorted(own.keys() ^ tensors.keys()):
        where = "is missing" if odd[0] in own else f"is unknown to {name}"
        raise InputError(f"tensor {odd[0]} {where}, which has {len(own)} tensors such as {next(iter(own))}")
    for key, tensor in tensors.items():
        if own[key].shape != tensor.shape:
            raise InputError(f"tensor {key} has shape {tuple(tensor.shape)}; {name} has {tuple(own[key].shape)}")
        if not torch.isfinite(tensor).all():
            raise InputError(f"tensor {key} holds values that are not finite")
    model.load_state_dict(tensors)
