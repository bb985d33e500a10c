"""Attention and matrix products of two computed tensors: a head goes whole when nothing reads it."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from hyperflux.backends.torch.compact.abstract_tensor import AbstractTensor
from hyperflux.backends.torch.compact.ops import Op
from hyperflux.backends.torch.compact.trace import Trace


class Attention(Op):
    """softmax(q kᵀ/√d) v of q, k, v (batch, heads, tokens, d), without a mask.

    The rows of the softmax sum to 1, so a channel of v that has one constant value for all tokens keeps it.
    """

    def __init__(self, trace: Trace, node: fx.Node) -> None:
        super().__init__(trace, node)
        self.query, self.key, self.values = (trace.tensors[source] for source in _operands(node))
        (self.output,) = self.outputs

    @staticmethod
    def supports(node: fx.Node) -> bool:
        """Return whether q, k and v are three different tensors, without mask, dropout or grouped queries."""
        sources, rest = _operands(node), [*node.args[3:5], *(node.kwargs.get(n) for n in ("attn_mask", "dropout_p"))]
        return len(set(sources)) == 3 and not any(rest) and not node.kwargs.get("enable_gqa")

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one head."""
        (tokens, width), (others, made) = self.query.shape[-2:], self.values.shape[-2:]
        adds: int = tokens * others * (width + made)
        return adds

    def propagate_constants(self) -> None:
        """A channel is constant where it is in v, with one value for all tokens."""
        constants = self.values.constants[..., :1, :]
        uniform = (self.values.constants == constants).all(-2, keepdim=True)
        self.output.set_constants(constants.nan_to_num().expand(self.output.shape), uniform.expand(self.output.shape))

    def propagate_liveness(self) -> None:
        """Heads stay together, and channels of v with those of the result; tokens and channels of q and k stay."""
        tensors = (self.query, self.key, self.values, self.output)
        if not _have_same_batch(tensors):
            _mark_all_live(tensors)
            return
        heads = _live_batch(tensors)
        for tensor in (self.query, self.key):
            tensor.mark_live([*heads, *map(torch.ones_like, tensor.live[-2:])])
        self.values.mark_live([*heads, torch.ones_like(self.values.live[-2]), self.output.live[-1]])
        self.output.mark_live([*heads, torch.ones_like(self.output.live[-2]), self.values.live[-1]])


class MatrixProduct(Op):
    """A batched matrix product: rows of the left factor, columns of the right one, and whole matrices may go."""

    def __init__(self, trace: Trace, node: fx.Node) -> None:
        super().__init__(trace, node)
        self.left, self.right = self.inputs
        (self.output,) = self.outputs

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one matrix."""
        return math.prod(self.left.shape[-2:]) * self.output.shape[-1]

    def propagate_constants(self) -> None:
        """A result is constant where its row and column are, and 0 where one of them is all 0."""
        rows, columns = self.left.known.all(-1)[..., :, None], self.right.known.all(-2)[..., None, :]
        zero_rows, zero_columns = (self.left.constants == 0).all(-1), (self.right.constants == 0).all(-2)
        zero = zero_rows[..., :, None] | zero_columns[..., None, :]
        value: Tensor = self.trace.evaluate(self.node)
        self.output.set_constants(value.masked_fill(zero, 0.0), (rows & columns) | zero)

    def propagate_liveness(self) -> None:
        """Rows, columns and matrices stay together; the dimension summed over stays whole."""
        tensors = (self.left, self.right, self.output)
        if not _have_same_batch(tensors):
            _mark_all_live(tensors)
            return
        matrices, summed = _live_batch(tensors), torch.ones_like(self.left.live[-1])
        self.left.mark_live([*matrices, self.output.live[-2], summed])
        self.right.mark_live([*matrices, summed, self.output.live[-1]])
        self.output.mark_live([*matrices, self.left.live[-2], self.right.live[-1]])


def _have_same_batch(tensors: Sequence[AbstractTensor]) -> bool:
    """Return whether the tensors have the same shape but for the last two dimensions."""
    return len({tensor.shape[:-2] for tensor in tensors}) == 1


def _mark_all_live(tensors: Sequence[AbstractTensor]) -> None:
    for tensor in tensors:
        tensor.mark_all_live()


def _live_batch(tensors: Sequence[AbstractTensor]) -> list[Tensor]:
    """Return what is live in any of the tensors, along all dimensions but the last two."""
    masks = zip(*(tensor.live[:-2] for tensor in tensors), strict=True)
    return [functools.reduce(torch.logical_or, along) for along in masks]


def _operands(node: fx.Node) -> list[fx.Node]:
    named = [node.kwargs.get(name) for name in ("query", "key", "value")]
    return [source for source in (*node.args[:3], *named) if isinstance(source, fx.Node)]
