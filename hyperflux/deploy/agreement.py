"""Whether two networks say the same: their outputs on one batch, up to rounding."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperflux.errors import RunError

FLOAT64_ROUNDING = 1e-10
"""Largest difference of float64 outputs that is rounding, as a share of the largest output."""
FLOAT32_ROUNDING = 1e-4
"""The same for float32."""


def require_agreement(name: str, outputs: Tensor, reference: Tensor) -> None:
    """Raise RunError unless `outputs` equals `reference` in shape, in dtype and, up to rounding, in value."""
    if outputs.shape != reference.shape or outputs.dtype != reference.dtype:
        raise RunError(
            f"{name}: gives {outputs.dtype} {tuple(outputs.shape)}, the pruned network "
            f"{reference.dtype} {tuple(reference.shape)}; please report it"
        )
    tolerance = FLOAT64_ROUNDING if reference.dtype == torch.float64 else FLOAT32_ROUNDING
    difference, scale = float((outputs - reference).abs().max()), float(reference.abs().max())
    if not difference <= tolerance * scale:
        raise RunError(
            f"{name}: its outputs differ from the pruned network's by {difference:.3g}, where these reach {scale:.3g}; "
            "nothing was timed; please report it"
        )
