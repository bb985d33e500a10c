"""The step of states that keep both moments of t in bfloat16: 4 bytes a weight instead of 8.

bfloat16 has the range of float32, and its neighbours lie 0.4 to 0.8 % apart. A step takes at most 0.1 % off the second
moment (β₂ = 0.999): rounded to the nearest it would never fall. Rounded by a `Dither` it falls as it should on
average, and wanders about that: like gradients, roundings are forgotten slowly, and some 500 are in it at a time. That
is 3 to 6 % of the second moment, and half as much of the length of a step of t. In the first moment it is about 1 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hyperflux.backends.torch.kernels.blocks import Blocks, Piece, block_size, in_memory
from hyperflux.backends.torch.kernels.dither import Dither, keys
from hyperflux.backends.torch.kernels.plain import Kernel, Share
from hyperflux.backends.torch.update import WeightState


class Narrow:
    """Any kernel, with float32 moments for a block at a time: widened before its step, rounded after it."""

    def __init__(self, kernel: Kernel, device: torch.device) -> None:
        self._kernel, size = kernel, block_size(device)
        moments = [torch.empty(size, device=device) for _ in range(2)]
        self._blocks, self._dither = Blocks(moments), Dither(size, device)
        self.name = f"{kernel.name} with narrow moments"
        self.buffers = (*kernel.buffers, *moments, *self._dither.buffers)

    def take_step(self, shares: Sequence[Share], pressure_gradient: float, learning_rate: float | None) -> None:
        """See `hyperflux.backends.torch.kernels.plain.Kernel`."""
        if learning_rate is None:
            self._kernel.take_step(shares, pressure_gradient, None)
            return
        for block in self._blocks.of(shares):
            wide = [_widened(piece, shares[piece.number]) for piece in block]
            self._kernel.take_step(wide, pressure_gradient, learning_rate)
            for piece in block:
                own = piece.state
                wide_first, wide_second = map(in_memory, piece.rooms)
                first, second = keys(shares[piece.number].state.steps, piece.start)
                self._dither.round(wide_first, first, out=in_memory(own.first))
                self._dither.round(wide_second, second, out=in_memory(own.second))
        for share in shares:
            share.state.count_step(pressure_gradient)

    def write_effective(self, state: WeightState, out: Tensor) -> None:
        """See `hyperflux.backends.torch.kernels.plain.Kernel`."""
        self._kernel.write_effective(state, out)


def _widened(piece: Piece, share: Share) -> Share:
    """The piece of a share, with a copy of its moments in float32."""
    first, second = (
        room.copy_(kept) for room, kept in zip(piece.rooms, (piece.state.first, piece.state.second), strict=True)
    )
    state = replace(piece.state, first=first, second=second, steps=share.state.steps)
    return Share(state, piece.of(share.gradient), share.scale)
