"""Serialize a network in each export format, and load the bytes back as a function."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from safetensors.torch import load
from torch import Tensor, nn

from hyperflux.deploy.onnx_file import onnx_content, onnx_function
from hyperflux.deploy.sparse_file import dense_content, sparse_content, sparse_tensors
from hyperflux.deploy.tensor_bits import storable_copy

Notes = Mapping[str, str]
"""Entries of a file's metadata."""
Function = Callable[[Tensor], Tensor]
"""From inputs (batch, ...) to outputs."""


class Format(NamedTuple):
    """One file format.

    Attributes:
        content: Returns a file's bytes, from a network in evaluation mode, inputs (2 or more, ...) to trace it with,
            and notes for the file's metadata.
        function: Returns the function that a file's bytes compute, from the bytes and the network; formats that hold
            only weights load them into a copy of it.
    """

    content: Callable[[nn.Module, Tensor, Notes], bytes]
    function: Callable[[bytes, nn.Module], Function]


def _dense_content(model: nn.Module, example: Tensor, notes: Notes) -> bytes:
    weights = {name: storable_copy(name, tensor) for name, tensor in model.state_dict().items()}
    return dense_content(weights, {"format": "pt", **notes})


def _dense_function(content: bytes, model: nn.Module) -> Function:
    return _with_weights(model, load(content))


def _sparse_content(model: nn.Module, example: Tensor, notes: Notes) -> bytes:
    return sparse_content(model.state_dict(), {"format": "pt", **notes})


def _sparse_function(content: bytes, model: nn.Module) -> Function:
    return _with_weights(model, sparse_tensors(content, "this export"))


def _with_weights(model: nn.Module, tensors: Mapping[str, Tensor]) -> Function:
    """Return a copy of the network with these weights; names and shapes must match."""
    filled = copy.deepcopy(model)
    filled.load_state_dict(dict(tensors))
    return filled


def _exported_content(model: nn.Module, example: Tensor, notes: Notes) -> bytes:
    batch = torch.export.Dim("batch")
    file = io.BytesIO()
    with _quiet():
        program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},), strict=False)
        torch.export.save(program, file, extra_files=dict(notes))
    return file.getvalue()


def _exported_function(content: bytes, model: nn.Module) -> Function:
    with _quiet():
        loaded: Function = torch.export.load(io.BytesIO(content)).module()
    return loaded


def _script_content(model: nn.Module, example: Tensor, notes: Notes) -> bytes:
    file = io.BytesIO()
    with _quiet():
        traced = torch.jit.trace(model, example, check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, file, _extra_files=dict(notes))
    return file.getvalue()


def _script_function(content: bytes, model: nn.Module) -> Function:
    with _quiet():
        loaded: Function = torch.jit.load(io.BytesIO(content))  # type: ignore[no-untyped-call]
    return loaded


def _quiet() -> warnings.catch_warnings[None]:
    """Silence torch's deprecation and tracing warnings: the result is run and compared afterwards."""
    return warnings.catch_warnings(action="ignore")


FORMATS = {
    "safetensors": Format(_dense_content, _dense_function),
    "sparse-safetensors": Format(_sparse_content, _sparse_function),
    "torch-export": Format(_exported_content, _exported_function),
    "torchscript": Format(_script_content, _script_function),
    "onnx": Format(onnx_content, lambda content, model: onnx_function(content)),
}
