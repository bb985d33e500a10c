"""Blocks of weights that stay in the cache during a step: large parameters are cut, small ones are combined."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hyperflux.backends.torch.weight_state import WeightState

CPU_BLOCK = 5 << 16
"""Weights per block on a CPU: enough that calls are cheap compared with the work, few enough for the caches."""
GPU_BLOCK = 1 << 22
"""The same on a GPU, where a call costs more."""
ALIGNMENT = 4
"""A piece begins at a multiple of this many elements in the buffer, so that several can be read at once."""


@dataclass(frozen=True)
class Piece:
    """A parameter, or the part of it that fits into a block.

    Attributes:
        number: Index of the parameter in the step.
        start: Index of its first element in the parameter's memory.
        whole: Whether it is the whole parameter.
        state: Views of the parameter's tensors; the parameter's own state counts the steps.
        scratch: Part of the block's buffer, with the tensors' layout.
    """

    number: int
    start: int
    whole: bool
    state: WeightState
    scratch: Tensor

    def of(self, tensor: Tensor) -> Tensor:
        """The same piece of another tensor with the parameter's layout."""
        return tensor if self.whole else in_memory(tensor)[self.start : self.start + self.state.latent.numel()]


class Blocks:
    """Divides a step's parameters into blocks of pieces that fit into a buffer.

    A parameter's cuts do not depend on the other parameters. The pieces are reused in the next step unless other
    parameters take part or tensors were replaced.

    Attributes:
        buffer: The buffer.
    """

    def __init__(self, buffer: Tensor) -> None:
        self.buffer = buffer
        self._cut: list[Tensor] = []
        self._blocks: list[list[Piece]] = []

    def of(self, states: Sequence[WeightState]) -> list[list[Piece]]:
        """The pieces of each block, for the parameters of these states."""
        if len(states) != len(self._cut) or any(
            state.latent is not latent for state, latent in zip(states, self._cut, strict=True)
        ):
            self._cut = [state.latent for state in states]
            self._blocks = list(self._filled(states))
        return self._blocks

    def _filled(self, states: Sequence[WeightState]) -> Iterator[list[Piece]]:
        block: list[Piece] = []
        used, size = 0, len(self.buffer)
        for number, own in enumerate(states):
            for start, whole, state in _pieces(own, size):
                like = state.latent
                if used + like.numel() > size:
                    yield block
                    block, used = [], 0
                scratch = self.buffer.as_strided(like.shape, like.stride(), used)
                block.append(Piece(number, start, whole, state, scratch))
                used += -(-like.numel() // ALIGNMENT) * ALIGNMENT
        if block:
            yield block


def block_size(device: torch.device) -> int:
    """Weights per block."""
    return CPU_BLOCK if device.type == "cpu" else GPU_BLOCK


def parts(tensor: Tensor, block: int) -> list[Tensor]:
    """Views of a tensor without gaps: its elements in memory order, in blocks."""
    flat = in_memory(tensor)
    return [flat[start : start + block] for start in range(0, len(flat), block)]


def in_memory(tensor: Tensor) -> Tensor:
    """A flat view of a tensor without gaps: its elements in memory order."""
    return tensor.as_strided((tensor.numel(),), (1,))


def _pieces(state: WeightState, block: int) -> Iterator[tuple[int, bool, WeightState]]:
    """The state itself if it fits into a block; otherwise flat parts in memory order."""
    if state.latent.numel() <= block:
        yield 0, True, state
        return
    cut = zip(*(parts(tensor, block) for tensor in state.tensors().values()), strict=True)
    for number, tensors in enumerate(cut):
        yield number * block, False, replace(state, **dict(zip(state.tensors(), tensors, strict=True)))
