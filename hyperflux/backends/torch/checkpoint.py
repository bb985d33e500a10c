"""Weights from a safetensors file or a torch checkpoint, read without executing anything in it."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hyperflux.errors import InputError

WRAPPERS = ("state_dict", "model")
"""Keys under which checkpoints of training scripts keep the weights."""


def read_checkpoint(path: str) -> dict[str, Tensor]:
    """Tensors by name, on the CPU. Raises InputError where the file is missing or is no checkpoint of tensors."""
    if not Path(path).is_file():
        raise InputError(f"checkpoint {path}: no such file")
    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"checkpoint {path}: not a readable safetensors file or torch checkpoint of tensors alone (nothing else "
            "is read, for safety); save the model's state_dict() by itself"
        ) from error
    except (OSError, SafetensorError, RuntimeError, KeyError, ValueError, TypeError, EOFError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"checkpoint {path}: not a readable safetensors file or torch checkpoint ({reason})"
        ) from error
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"checkpoint {path}: is no state_dict of tensors")
    return {name.removeprefix("module.").removeprefix("_orig_mod."): tensor for name, tensor in content.items()}


def load_into(model: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Replace all parameters and buffers of `model`.

    Raises InputError where names or shapes do not fit or values are not finite; then nothing was replaced.
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
