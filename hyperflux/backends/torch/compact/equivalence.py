"""Compare the outputs of two networks on one batch, up to rounding."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperflux.errors import RunError

ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Largest difference that counts as rounding, by dtype, as a fraction of the largest output."""


def outputs_match(outputs: Tensor, reference: Tensor) -> bool:
    """Return whether two outputs have the same shape and dtype, and equal values up to rounding.

    Values that are not finite, and dtypes that do not round, must be equal exactly.
    """
    if outputs.shape != reference.shape or outputs.dtype != reference.dtype:
        return False
    if reference.dtype not in ROUNDING:
        return torch.equal(outputs, reference)
    finite = reference[reference.isfinite()]
    tolerance = ROUNDING[reference.dtype] * float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(outputs, reference, rtol=0, atol=tolerance, equal_nan=True)


def require_matching_outputs(name: str, outputs: Tensor, reference: Tensor) -> None:
    """Raise RunError unless a variant's outputs match the pruned network's.

    Args:
        name: The variant, for the message.
        outputs: Its outputs.
        reference: The pruned network's outputs on the same batch.

    Raises:
        RunError: Shape, dtype or values differ.
    """
    if outputs.shape != reference.shape or outputs.dtype != reference.dtype:
        raise RunError(
            f"{name}: returns {outputs.dtype} {tuple(outputs.shape)}, the pruned network returns "
            f"{reference.dtype} {tuple(reference.shape)}; please report this as a bug"
        )
    if not outputs_match(outputs, reference):
        difference, scale = float((outputs - reference).abs().max()), float(reference.abs().max())
        raise RunError(
            f"{name}: its outputs differ from the pruned network's by {difference:.3g} (largest output {scale:.3g}); "
            "nothing was timed; please report this as a bug"
        )
