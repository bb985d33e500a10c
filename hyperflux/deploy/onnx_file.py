"""Write a network as an ONNX file, and run it in ONNX Runtime; needs the extra `hyperflux[onnx]`."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

INPUT, OUTPUT = "inputs", "logits"
"""Their names in the file; shapes (batch, ...) and (batch, classes)."""


def onnx_content(model: nn.Module, example: Tensor, notes: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes of an ONNX file that takes any batch size.

    Args:
        model: The network, in evaluation mode.
        example: Inputs (2 or more, ...) to trace it with.
        notes: Entries of the file's metadata.
    """
    with _silence():
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        )
        assert program is not None  # always so with dynamo
        proto = program.model_proto
        for key, value in (notes or {}).items():
            proto.metadata_props.add(key=key, value=value)
        content: bytes = proto.SerializeToString()
    return content


class UnsupportedError(Exception):
    """ONNX Runtime has no kernel for some layer in the network's dtype."""


def onnx_function(content: bytes, threads: int = 0) -> Callable[[Tensor], Tensor]:
    """Load an ONNX file in ONNX Runtime on the CPU.

    Args:
        content: The file's bytes.
        threads: Number of threads; 0 leaves it to ONNX Runtime.

    Returns:
        A function from inputs (batch, ...) to outputs.

    Raises:
        UnsupportedError: ONNX Runtime lacks a kernel.
    """
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except NoKernel as error:
        raise UnsupportedError(" ".join(str(error).split())) from error
    return lambda inputs: torch.from_numpy(session.run([OUTPUT], {INPUT: inputs.numpy()})[0])


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Silence warnings, prints and logs below errors: the exporter reports its passes and torch's deprecations."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
