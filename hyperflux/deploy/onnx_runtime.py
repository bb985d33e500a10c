"""A network as ONNX Runtime runs it on the CPU; needs the extra `hyperflux[onnx]`."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor, nn

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def missing_packages() -> list[str]:
    """Those of `PACKAGES` that are not installed."""
    return [name for name in PACKAGES if find_spec(name) is None]


class UnsupportedError(Exception):
    """ONNX Runtime has no kernel for some layer in the network's dtype."""


def onnx_runtime(model: nn.Module, example_input: Tensor, threads: int) -> tuple[Callable[[Tensor], Tensor], int]:
    """A function of inputs (batch, ...) of any batch size that ONNX Runtime computes, and its file's bytes.

    `model` is in evaluation mode; the example has 2 samples or more. Raises UnsupportedError.
    """
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

    batch = torch.export.Dim("batch")
    program = torch.onnx.export(model, (example_input,), dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
    assert program is not None  # so it is with dynamo
    content = program.model_proto.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except NoKernel as error:
        raise UnsupportedError(" ".join(str(error).split())) from error
    (argument,) = session.get_inputs()
    return lambda inputs: torch.from_numpy(session.run(None, {argument.name: inputs.numpy()})[0]), len(content)
