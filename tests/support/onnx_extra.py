"""How others read exported files, and the mark of tests that need the extra `hyperflux[onnx]`."""

from importlib.util import find_spec

import pytest

from hyperflux.deploy.export_options import ONNX_PACKAGES

needed = pytest.mark.skipif(
    not all(map(find_spec, ONNX_PACKAGES)), reason="needs the extra: pip install 'hyperflux[onnx]'"
)
READERS = {
    "torch-export": "run = torch.export.load(path).module()",
    "torchscript": "run = torch.jit.load(path)",
    "onnx": """
import onnxruntime
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
run = lambda inputs: torch.from_numpy(session.run(["logits"], {"inputs": inputs.numpy()})[0])
""",
}
"""By format, code that defines `run`, from inputs to outputs, of the file at `path`."""
