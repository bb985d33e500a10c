"""Layers that hold a pattern such as 2:4, and those that a GPU's kernels for 2:4 can run."""

from __future__ import annotations

import copy
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hyperflux.backends.torch.arguments import require_module
from hyperflux.backends.torch.pattern_layout import Inputs, groups_of
from hyperflux.deploy.sparse import FUSED_MODULES
from hyperflux.gates.kinds import Pattern

TWO_OF_FOUR = Pattern(2, 4)
"""The pattern that the kernels take."""
CAPABILITY = (8, 0)
"""Lowest compute capability of a GPU with the kernels."""
DTYPES = (torch.float16, torch.bfloat16)
"""Number formats of weights that are converted."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class SemiStructuredLayer:
    """Whether a linear layer or convolution runs by the kernels for 2:4.

    Attributes:
        name: The layer.
        sparse: Whether it does.
        reason: Why it does not; empty if it does.
    """

    name: str
    sparse: bool
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)


def pattern_layers(model: nn.Module, pattern: Pattern = TWO_OF_FOUR) -> list[str]:
    """Names of the linear layers and convolutions whose values hold a pattern, and are long enough for it to matter.

    Of every M consecutive weights along the inputs at most N are not 0.
    """
    return [name for name, layer in _layers(model) if _holds(layer, pattern)]


def unfit(weight: Tensor) -> str:
    """Why a weight (outputs, inputs) has no semi-structured form, whatever the device; empty if it has one."""
    if weight.dtype not in DTYPES:
        return f"{str(weight.dtype).removeprefix('torch.')}; the kernels take float16 and bfloat16"
    least = _form()._DTYPE_SHAPE_CONSTRAINTS[weight.dtype]
    rows, columns = least.sparse_min_rows, least.sparse_min_cols
    outputs, inputs = weight.shape
    if outputs % rows or inputs % columns:
        return f"{outputs}×{inputs}; the kernels take multiples of {rows} outputs and of {columns} inputs"
    return ""


def semi_structured(model: nn.Module) -> tuple[nn.Module, list[SemiStructuredLayer]]:
    """Copy a network for inference, with linear layers that hold 2:4 in the form of the GPU's kernels.

    Args:
        model: The network, in float16 or bfloat16 on a CUDA device; it stays as it is.

    Returns:
        The copy, in evaluation mode and frozen, and what became of each linear layer and convolution. A layer that
        can't be converted stays dense.

    Raises:
        InputError: It is not a module.
    """
    require_module("model", model)
    converted = copy.deepcopy(model).eval().requires_grad_(False)
    fused = {child for owner in converted.modules() if isinstance(owner, FUSED_MODULES) for child in owner.children()}
    found = []
    for name, layer in _layers(converted):
        reason = "a fused kernel reads its weight" if layer in fused else _obstacle(layer)
        if not reason:
            reason = _convert(layer)
        found.append(SemiStructuredLayer(name, not reason, reason))
    return converted, found


def _layers(model: nn.Module) -> list[tuple[str, Any]]:
    kinds = (nn.Linear, *_CONVOLUTIONS)
    return [(name, module) for name, module in model.named_modules() if isinstance(module, kinds)]


def _holds(layer: Any, pattern: Pattern) -> bool:
    inputs = Inputs.of("weight", layer.weight, layer)
    groups = groups_of(inputs.rows(layer.weight.detach()), pattern.group)
    held = all(bool((torch.count_nonzero(own, -1) <= pattern.kept).all()) for own in groups)
    return held and inputs.length > pattern.kept


def _obstacle(layer: Any) -> str:
    """Why a layer can't be converted; empty if nothing is known to be in the way."""
    weight = layer.weight
    if not isinstance(layer, nn.Linear):
        return "a convolution; the kernels multiply matrices"
    if type(layer) is not nn.Linear:
        return f"a {type(layer).__name__}, which may use its weight in another way"
    if not _holds(layer, TWO_OF_FOUR):
        return "some four consecutive weights hold more than two that are not 0"
    if weight.device.type != "cuda":
        return f"on {weight.device.type}; the kernels need a CUDA device"
    if (own := torch.cuda.get_device_capability(weight.device)) < CAPABILITY:
        needed, have = (".".join(map(str, version)) for version in (CAPABILITY, own))
        return f"the GPU has compute capability {have}; the kernels need {needed}"
    return unfit(weight)


def _form() -> Any:
    """The form that this build of torch has kernels for."""
    if torch.backends.cusparselt.is_available():
        return torch.sparse.SparseSemiStructuredTensorCUSPARSELT
    return torch.sparse.SparseSemiStructuredTensorCUTLASS


def _convert(layer: nn.Linear) -> str:
    """Convert a layer's weight in place. Returns why it stays dense; empty if it is converted."""
    weight = layer.weight.detach().contiguous()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The PyTorch API of SparseSemiStructuredTensor is in prototype")
            sparse = _form().from_dense(weight)
            same = torch.equal(sparse.to_dense(), weight)
    except RuntimeError as error:
        return f"torch can't convert it ({str(error).splitlines()[0]})"
    if not same:
        return "torch's semi-structured form of it has other values"
    layer.weight = nn.Parameter(sparse, requires_grad=False)
    return ""
