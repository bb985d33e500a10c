"""A training step in few passes over memory, in blocks that stay in the cache, without a branch a weight.

Two operations of torch do it. `_fused_adam_` is Adam in one pass, for many tensors in one call: `torch.optim.Adam`
uses it. `threshold_backward`, the gradient of ReLU, is the gate: it lets values through where another tensor lies above
a threshold and writes +0 elsewhere. `masked_fill_` does the same, but on a CPU it guesses a branch at every weight,
and guesses wrong where present and pruned weights alternate.

What is not a sum is that of the plain way to the bit: masks, θ = w·m and g·m. Adam rounds in another order.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hyperflux.backends.torch.kernel import Share
from hyperflux.backends.torch.update import WeightState, same_layout
from hyperflux.spec import ADAM_BETAS, ADAM_EPSILON, KAPPA

CPU_BLOCK = 1 << 18
"""Weights handled at once on a CPU: enough that calls cost little beside the work, few enough for its caches."""
GPU_BLOCK = 1 << 22
"""The same on a GPU, where a call costs more. A block of slopes is the one temporary of a step."""


class _Piece(NamedTuple):
    """A share, or as much of it as fits into a block: g, w, t and both moments, all of one shape and layout."""

    tensors: tuple[Tensor, ...]
    steps: int
    scale: Tensor | None


class Fused:
    """Every step in blocks of the network, for one device and dtype."""

    name = "fused"

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._block = CPU_BLOCK if device.type == "cpu" else GPU_BLOCK
        self._slopes = torch.empty(self._block, device=device, dtype=dtype)
        self.buffers: tuple[Tensor, ...] = (self._slopes,)

    def take_step(self, shares: Sequence[Share], pressure_gradient: float, learning_rate: float | None) -> None:
        """See `hyperflux.backends.torch.kernel.Kernel`."""
        if learning_rate is None:
            for share in shares:
                gate(share.gradient, share.state.presence, out=share.gradient)
            return
        device, dtype = self._slopes.device, self._slopes.dtype
        pressure = torch.full((), pressure_gradient, device=device, dtype=dtype)
        for share in shares:
            share.state.count_step(pressure_gradient)
        for batch in _batches(shares, self._block):
            slopes = self._slopes_of(batch)
            for piece, slope in zip(batch, slopes, strict=True):
                gradient, latent, presence, *_ = piece.tensors
                unscaled = gradient
                if piece.scale is not None:  # a fused optimizer unscales inside its step
                    unscaled = torch.div(gradient, piece.scale.to(gradient), out=slope)
                torch.addcmul(pressure, unscaled, latent, value=KAPPA, out=slope)
                gate(gradient, presence, out=gradient)
            _adam(batch, slopes, learning_rate)

    def _slopes_of(self, batch: Sequence[_Piece]) -> list[Tensor]:
        """Room for ∂(L + L_p)/∂t of every piece, in the piece's layout."""
        places, start = [], 0
        for piece in batch:
            like = piece.tensors[0]
            places.append(self._slopes.as_strided(like.shape, like.stride(), start))
            start += like.numel()
        return places

    def write_effective(self, state: WeightState, out: Tensor) -> None:
        """See `hyperflux.backends.torch.kernel.Kernel`."""
        if not same_layout(out, state.latent):
            state.write_effective(out)
        elif out.dtype == state.latent.dtype:
            gate(state.latent, state.presence, out=out)
        else:
            parts = (_parts(tensor, self._block) for tensor in (state.latent, state.presence, out))
            for latent, presence, part in zip(*parts, strict=True):
                effective = self._slopes[: latent.numel()]
                gate(latent, presence, out=effective)
                part.copy_(effective)


def gate(values: Tensor, presence: Tensor, out: Tensor) -> None:
    """`values` where t >= 0, +0 elsewhere, see E1: all of one shape, dtype and layout. `out` may be `values`."""
    below_zero = _below_zero(values.dtype, subnormal=-math.ulp(0.0) < 0)
    torch.ops.aten.threshold_backward.grad_input(values, presence, below_zero, grad_input=out)


@functools.cache
def _below_zero(dtype: torch.dtype, subnormal: bool) -> float:
    """The largest number below 0; the largest normal one where the processor takes the others for 0."""
    limits = torch.finfo(dtype)
    return -limits.tiny * (limits.eps if subnormal else 1.0)


def _adam(batch: list[_Piece], slopes: list[Tensor], learning_rate: float) -> None:
    """One step of Adam on t."""
    beta1, beta2 = ADAM_BETAS
    count = torch.empty((), dtype=torch.float32, device=slopes[0].device)  # whatever the dtype of the rest
    counts = {steps: torch.full_like(count, steps) for steps in {piece.steps for piece in batch}}
    _, _, presence, first, second = map(list, zip(*(piece.tensors for piece in batch), strict=True))
    torch._fused_adam_(
        presence,
        slopes,
        first,
        second,
        [],
        [counts[piece.steps] for piece in batch],
        lr=learning_rate,
        beta1=beta1,
        beta2=beta2,
        weight_decay=0.0,
        eps=ADAM_EPSILON,
        amsgrad=False,
        maximize=False,
    )


def _batches(shares: Sequence[Share], block: int) -> Iterator[list[_Piece]]:
    """All pieces, as many at a time as a block holds. Where a parameter is cut does not depend on the others."""
    batch: list[_Piece] = []
    room = block
    for share in shares:
        for piece in _pieces(share, block):
            size = piece.tensors[0].numel()
            if size > room:
                yield batch
                batch, room = [], block
            batch.append(piece)
            room -= size
    if batch:
        yield batch


def _pieces(share: Share, block: int) -> Iterator[_Piece]:
    """The share as it is where it fits into a block, else flat parts in the order of memory."""
    state = share.state
    tensors = (share.gradient, state.latent, state.presence, state.first, state.second)
    if state.latent.numel() <= block and share.gradient.stride() == state.latent.stride():
        yield _Piece(tensors, state.steps, share.scale)
        return
    for parts in zip(*(_parts(tensor, block) for tensor in tensors), strict=True):
        yield _Piece(parts, state.steps, share.scale)


def _parts(tensor: Tensor, block: int) -> list[Tensor]:
    """All elements in the order of memory, a block at a time: of tensors without gaps."""
    flat = tensor.as_strided((tensor.numel(),), (1,))
    return [flat[start : start + block] for start in range(0, len(flat), block)]
