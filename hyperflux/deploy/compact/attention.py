"""Matrix products of two computed tensors: attention, where a whole head goes when nobody reads it."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from hyperflux.deploy.compact.ops import Op
from hyperflux.deploy.compact.runs import Trace
from hyperflux.deploy.compact.slots import Slot


class Attention(Op):
    """softmax(q kᵀ/√d) v of q, k, v (batch, heads, tokens, d), without a mask.

    The rows of the softmax sum to 1, so a channel of v that is one constant for all tokens is that in the result.
    """

    def __init__(self, trace: Trace, node: fx.Node) -> None:
        super().__init__(trace, node)
        self.query, self.key, self.values = (trace.slots[source] for source in _operands(node))
        (self.output,) = self.outputs

    @staticmethod
    def plain(node: fx.Node) -> bool:
        """Whether q, k and v are three tensors, and nothing masks or drops."""
        sources, rest = _operands(node), [*node.args[3:5], *(node.kwargs.get(n) for n in ("attn_mask", "dropout_p"))]
        return len(set(sources)) == 3 and not any(rest) and not node.kwargs.get("enable_gqa")

    def evaluate(self) -> None:
        """Constant channels of v."""
        constants = self.values.value[..., :1, :]
        uniform = (self.values.value == constants).all(-2, keepdim=True)
        self.output.learn(constants.nan_to_num().expand(self.output.shape), uniform.expand(self.output.shape))

    def spread(self) -> None:
        """Heads go together, and channels of v with those of the result."""
        slots = (self.query, self.key, self.values, self.output)
        if len({slot.shape[:-2] for slot in slots}) > 1:
            for slot in slots:
                slot.require_all()
            return
        heads = _joined(slots)
        for slot in (self.query, self.key):
            slot.require([*heads, *map(torch.ones_like, slot.kept[-2:])])
        self.values.require([*heads, torch.ones_like(self.values.kept[-2]), self.output.kept[-1]])
        self.output.require([*heads, torch.ones_like(self.output.kept[-2]), self.values.kept[-1]])


class Product(Op):
    """A matrix product: rows of the left factor, columns of the right one, and matrices of a batch may go."""

    def __init__(self, trace: Trace, node: fx.Node) -> None:
        super().__init__(trace, node)
        self.left, self.right = self.inputs
        (self.output,) = self.outputs

    def evaluate(self) -> None:
        """Known where a whole row and column are, and where one of them is 0."""
        rows, columns = self.left.known.all(-1)[..., :, None], self.right.known.all(-2)[..., None, :]
        silent = (self.left.value == 0).all(-1)[..., :, None] | (self.right.value == 0).all(-2)[..., None, :]
        value: Tensor = self.trace.run(self.node)
        self.output.learn(value.masked_fill(silent, 0.0), (rows & columns) | silent)

    def spread(self) -> None:
        """What is summed over stays whole."""
        slots = (self.left, self.right, self.output)
        if len({slot.shape[:-2] for slot in slots}) > 1:
            for slot in slots:
                slot.require_all()
            return
        matrices, summed = _joined(slots), torch.ones_like(self.left.kept[-1])
        self.left.require([*matrices, self.output.kept[-2], summed])
        self.right.require([*matrices, summed, self.output.kept[-1]])
        self.output.require([*matrices, self.left.kept[-2], self.right.kept[-1]])


def _joined(slots: Sequence[Slot]) -> list[Tensor]:
    """What any of the tensors keeps, along all dimensions but the last two."""
    return [
        functools.reduce(torch.logical_or, masks) for masks in zip(*(slot.kept[:-2] for slot in slots), strict=True)
    ]


def _operands(node: fx.Node) -> list[fx.Node]:
    named = [node.kwargs.get(name) for name in ("query", "key", "value")]
    return [source for source in (*node.args[:3], *named) if isinstance(source, fx.Node)]
