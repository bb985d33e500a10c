"""Whether two networks say the same: their outputs on one batch, up to rounding."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperflux.errors import RunError

ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Largest difference of two outputs that is rounding, by dtype, as a share of the largest output."""


def agrees(outputs: Tensor, reference: Tensor) -> bool:
    """Whether two outputs are equal up to rounding; where nothing is rounded, or not finite, to the bit."""
    if outputs.shape != reference.shape or outputs.dtype != reference.dtype:
        return False
    if reference.dtype not in ROUNDING:
        return torch.equal(outputs, reference)
    finite = reference[reference.isfinite()]
    reach = ROUNDING[reference.dtype] * float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(outputs, reference, rtol=0, atol=reach, equal_nan=True)


def require_same_outputs(name: str, outputs: Tensor, reference: Tensor) -> None:
    """Raise RunError unless `outputs` equals `reference` in shape, in dtype and, up to rounding, in value."""
    if outputs.shape != reference.shape or outputs.dtype != reference.dtype:
        raise RunError(
            f"{name}: gives {outputs.dtype} {tuple(outputs.shape)}, the pruned network "
            f"{reference.dtype} {tuple(reference.shape)}; please report it"
        )
    if not agrees(outputs, reference):
        difference, scale = float((outputs - reference).abs().max()), float(reference.abs().max())
        raise RunError(
            f"{name}: its outputs differ from the pruned network's by {difference:.3g}, where these reach {scale:.3g}; "
            "nothing was timed; please report it"
        )
