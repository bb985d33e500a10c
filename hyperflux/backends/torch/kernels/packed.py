"""A training step in few calls: small parameters are gathered in flat buffers, so that one call serves many of them.

On a GPU, a network of many small layers waits for the calls and not for the memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperflux.backends.torch.kernels.blocks import Blocks, Piece
from hyperflux.backends.torch.kernels.fused import adam, gate
from hyperflux.backends.torch.kernels.plain import ParameterUpdate, Plain
from hyperflux.backends.torch.weight_state import WeightState, same_layout

LARGEST_PACKED = 1 << 19
"""Weights of the largest parameter that is gathered. For larger ones the copies cost more than the calls."""
PACK = 1 << 21
"""Weights gathered at a time."""


@dataclass(frozen=True)
class _Pack:
    """Parameters that are gathered together, in three buffers.

    Attributes:
        pieces: The parameters.
        flat: The part of each buffer that they fill.
        views: Views of each buffer, with the parameters' shapes and layouts.
    """

    pieces: list[Piece]
    flat: list[Tensor]
    views: list[list[Tensor]]

    @classmethod
    def of(cls, buffers: Sequence[Tensor], blocks: Sequence[list[Piece]]) -> _Pack:
        last = blocks[0][-1].scratch
        end = last.storage_offset() + last.numel()
        views = [[piece.scratch for piece in block] for block in blocks]
        return cls(blocks[0], [buffer[:end] for buffer in buffers], views)

    def own(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Those of the parameters in this pack."""
        return [tensors[piece.number] for piece in self.pieces]


class Packed:
    """The fused kernel for many parameters per call, all of at most `LARGEST_PACKED` weights, of one device and dtype.

    Attributes:
        buffers: Three blocks.
    """

    name = "packed"

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._blocks = [Blocks(torch.empty(PACK, device=device, dtype=dtype)) for _ in range(3)]
        self.buffers: tuple[Tensor, ...] = tuple(blocks.buffer for blocks in self._blocks)

    def take_step(
        self, updates: Sequence[ParameterUpdate], pressure_gradient: float, learning_rate: float | None
    ) -> None:
        """See `hyperflux.backends.torch.kernels.plain.Kernel`."""
        for ascends in (False, True):
            if chosen := [update for update in updates if update.ascends == ascends]:
                self._take_step(chosen, pressure_gradient, learning_rate)

    def _take_step(
        self, updates: Sequence[ParameterUpdate], pressure_gradient: float, learning_rate: float | None
    ) -> None:
        """A step of parameters that all ascend or all descend."""
        states, gradients = [update.state for update in updates], [update.gradient for update in updates]
        if learning_rate is not None:
            for state in states:
                state.count_step(pressure_gradient)
        like, scale, kappa = self.buffers[0], updates[0].scale, updates[0].kappa
        pressure = torch.scalar_tensor(pressure_gradient, device=like.device, dtype=like.dtype)
        for pack in self._packs(states):
            (gradient, presence, slope), (as_gradients, as_presence, as_slopes) = pack.flat, pack.views
            torch._foreach_copy_(as_gradients, pack.own(gradients))
            torch._foreach_copy_(as_presence, [piece.state.presence for piece in pack.pieces])
            if learning_rate is not None:
                torch._foreach_copy_(as_slopes, [piece.state.latent for piece in pack.pieces])
                if scale is not None:  # a fused optimizer unscales gradients inside its step
                    slope.div_(scale.to(slope))
                torch.addcmul(pressure, gradient, slope, value=kappa, out=slope)
            gate(gradient, presence, out=gradient)
            torch._foreach_copy_(pack.own(gradients), as_gradients)
            if learning_rate is not None:
                own = [piece.state for piece in pack.pieces]
                adam(own, [state.steps for state in own], as_slopes, learning_rate)

    def write_effective(self, states: Sequence[WeightState], out: Sequence[Tensor]) -> None:
        """See `hyperflux.backends.torch.kernels.plain.Kernel`."""
        if not _are_alike(states, out):
            Plain().write_effective(states, out)
            return
        for pack in self._gathered(states):
            torch._foreach_copy_(pack.own(out), pack.views[0])

    def differs(self, states: Sequence[WeightState], values: Sequence[Tensor]) -> Tensor:
        """See `hyperflux.backends.torch.kernels.plain.Kernel`."""
        if not _are_alike(states, values):
            return Plain().differs(states, values)
        found: list[Tensor] = []
        for pack in self._gathered(states):
            effective, given, known = pack.flat
            torch._foreach_copy_(pack.views[1], pack.own(values))
            if values[0].dtype != effective.dtype:
                effective.copy_(effective.to(values[0].dtype))
            torch.eq(effective, effective, out=known)  # 0 where w is NaN
            effective.ne_(given).mul_(known)
            found += torch._foreach_norm(pack.views[0], 1)
        return torch.stack(found) > 0

    def _gathered(self, states: Sequence[WeightState]) -> Iterator[_Pack]:
        """The packs, with θ = w·m in the first buffer."""
        for pack in self._packs(states):
            effective, presence, _ = pack.flat
            torch._foreach_copy_(pack.views[0], [piece.state.latent for piece in pack.pieces])
            torch._foreach_copy_(pack.views[1], [piece.state.presence for piece in pack.pieces])
            gate(effective, presence, out=effective)
            yield pack

    def _packs(self, states: Sequence[WeightState]) -> Iterator[_Pack]:
        for blocks in zip(*(blocks.of(states) for blocks in self._blocks), strict=True):
            yield _Pack.of(self.buffers, blocks)


def _are_alike(states: Sequence[WeightState], tensors: Sequence[Tensor]) -> bool:
    """Whether tensors have the layouts of their states, and one dtype."""
    return all(
        tensor.dtype == tensors[0].dtype and same_layout(tensor, state.latent)
        for state, tensor in zip(states, tensors, strict=True)
    )
