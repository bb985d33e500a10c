"""A network as an ONNX file, and as ONNX Runtime runs it; needs the extra `hyperflux[onnx]`."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

INPUT, OUTPUT = "inputs", "logits"
"""What the file calls them: (batch, ...) and (batch, classes)."""


def onnx_content(model: nn.Module, example: Tensor, notes: Mapping[str, str] | None = None) -> bytes:
    """The file's bytes, of a network in evaluation mode traced with `example` (2 or more, ...), for any batch size."""
    with _silence():
        schedule = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        )
        assert schedule is not None  # so it is with dynamo
        proto = schedule.model_proto
        for key, value in (notes or {}).items():
            proto.metadata_props.add(key=key, value=value)
        content: bytes = proto.SerializeToString()
    return content


class UnsupportedError(Exception):
    """ONNX Runtime has no kernel for some layer in the network's dtype."""


def onnx_function(content: bytes, threads: int = 0) -> Callable[[Tensor], Tensor]:
    """What ONNX Runtime computes of inputs (batch, ...) on the CPU, with so many threads; 0 leaves the number to it.

    Raises UnsupportedError.
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
    """No warnings, no prints, no logs below errors: the exporter tells of its passes and of torch's own future."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
