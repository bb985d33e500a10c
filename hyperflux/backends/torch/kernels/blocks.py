"""A step in blocks of weights that stay in the cache: states cut up, and put together, to what a buffer holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hyperflux.backends.torch.kernels.plain import Share
from hyperflux.backends.torch.weight_state import WeightState

CPU_BLOCK = 5 << 16
"""Weights handled at once on a CPU: enough that calls cost little beside the work, few enough for its caches."""
GPU_BLOCK = 1 << 22
"""The same on a GPU, where a call costs more."""


@dataclass(frozen=True)
class Piece:
    """A parameter, or as much of it as fits into a block.

    `number` is that of its share of the step, `start` where in the parameter's memory it begins. `state` has views of
    the tensors; steps are counted by the share's own. `rooms` has a place in every buffer, laid out as the tensors are.
    """

    number: int
    start: int
    whole: bool
    state: WeightState
    rooms: tuple[Tensor, ...]

    def of(self, tensor: Tensor) -> Tensor:
        """The same piece of another tensor that is laid out as the parameter is."""
        return tensor if self.whole else in_memory(tensor)[self.start : self.start + self.state.latent.numel()]


class Blocks:
    """Cuts steps into as many pieces at a time as `buffers`, all of one size, have room for.

    Where a parameter is cut does not depend on the others. All is kept for the next step, and cut anew only where other
    shares take part or their tensors have been replaced.
    """

    def __init__(self, buffers: Sequence[Tensor]) -> None:
        self._buffers, self._size = buffers, len(buffers[0])
        self._cut: list[Tensor] = []
        self._blocks: list[list[Piece]] = []

    def of(self, shares: Sequence[Share]) -> list[list[Piece]]:
        """The pieces of every block."""
        if len(shares) != len(self._cut) or any(
            share.state.latent is not latent for share, latent in zip(shares, self._cut, strict=True)
        ):
            self._cut = [share.state.latent for share in shares]
            self._blocks = list(self._filled(shares))
        return self._blocks

    def _filled(self, shares: Sequence[Share]) -> Iterator[list[Piece]]:
        block: list[Piece] = []
        used = 0
        for number, share in enumerate(shares):
            for start, whole, state in _pieces(share.state, self._size):
                like = state.latent
                if used + like.numel() > self._size:
                    yield block
                    block, used = [], 0
                rooms = tuple(buffer.as_strided(like.shape, like.stride(), used) for buffer in self._buffers)
                block.append(Piece(number, start, whole, state, rooms))
                used += like.numel()
        if block:
            yield block


def block_size(device: torch.device) -> int:
    """Weights in a block."""
    return CPU_BLOCK if device.type == "cpu" else GPU_BLOCK


def parts(tensor: Tensor, block: int) -> list[Tensor]:
    """All elements in the order of memory, a block at a time: of tensors without gaps."""
    flat = in_memory(tensor)
    return [flat[start : start + block] for start in range(0, len(flat), block)]


def in_memory(tensor: Tensor) -> Tensor:
    """The elements of a tensor without gaps in the order of memory: a view of one dimension."""
    return tensor.as_strided((tensor.numel(),), (1,))


def _pieces(state: WeightState, block: int) -> Iterator[tuple[int, bool, WeightState]]:
    """The state as it is where it fits into a block, else flat parts in the order of memory."""
    if state.latent.numel() <= block:
        yield 0, True, state
        return
    cut = zip(*(parts(tensor, block) for tensor in state.tensors().values()), strict=True)
    for number, tensors in enumerate(cut):
        yield number * block, False, replace(state, **dict(zip(state.tensors(), tensors, strict=True)))
