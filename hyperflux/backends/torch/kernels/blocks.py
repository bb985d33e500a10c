"""A step in blocks of weights that stay in the cache: shares cut up, and put together, to what a buffer holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from hyperflux.backends.torch.kernels.plain import Share

CPU_BLOCK = 5 << 16
"""Weights handled at once on a CPU: enough that calls cost little beside the work, few enough for its caches."""
GPU_BLOCK = 1 << 22
"""The same on a GPU, where a call costs more."""


class Piece(NamedTuple):
    """A share, or as much of it as fits into a block, and where in the parameter's memory it starts."""

    share: Share
    start: int


def block_size(device: torch.device) -> int:
    """Weights in a block."""
    return CPU_BLOCK if device.type == "cpu" else GPU_BLOCK


def batches(shares: Sequence[Share], block: int) -> Iterator[list[Piece]]:
    """All pieces, as many at a time as a block holds. Where a parameter is cut does not depend on the others."""
    batch: list[Piece] = []
    room = block
    for share in shares:
        for piece in _pieces(share, block):
            size = piece.share.gradient.numel()
            if size > room:
                yield batch
                batch, room = [], block
            batch.append(piece)
            room -= size
    if batch:
        yield batch


def places(buffer: Tensor, batch: Sequence[Piece]) -> list[Tensor]:
    """Room for a value a weight of every piece, one after the other in a block's buffer, in the pieces' layouts."""
    found, start = [], 0
    for piece in batch:
        like = piece.share.gradient
        found.append(buffer.as_strided(like.shape, like.stride(), start))
        start += like.numel()
    return found


def parts(tensor: Tensor, block: int) -> list[Tensor]:
    """All elements in the order of memory, a block at a time: of tensors without gaps."""
    flat = in_memory(tensor)
    return [flat[start : start + block] for start in range(0, len(flat), block)]


def in_memory(tensor: Tensor) -> Tensor:
    """The elements of a tensor without gaps in the order of memory: a view of one dimension."""
    return tensor.as_strided((tensor.numel(),), (1,))


def _pieces(share: Share, block: int) -> Iterator[Piece]:
    """The share as it is where it fits into a block, else flat parts in the order of memory."""
    state, gradient = share.state, share.gradient
    if state.latent.numel() <= block and gradient.stride() == state.latent.stride():
        yield Piece(share, 0)
        return
    cut = (parts(tensor, block) for tensor in (gradient, state.latent, state.presence, state.first, state.second))
    for number, (part, latent, presence, first, second) in enumerate(zip(*cut, strict=True)):
        own = replace(state, latent=latent, presence=presence, first=first, second=second)
        yield Piece(Share(own, part, share.scale), number * block)
