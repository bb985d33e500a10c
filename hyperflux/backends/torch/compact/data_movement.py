"""Calls that only move elements: reshape, transpose, cat, split, pad, indexing, ..."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from hyperflux.backends.torch.compact.abstract_tensor import AbstractTensor
from hyperflux.backends.torch.compact.execution import CALL_ERRORS, tensors
from hyperflux.backends.torch.compact.nodes import call_name
from hyperflux.backends.torch.compact.ops import Op
from hyperflux.backends.torch.compact.trace import Trace, abstract_tensors

SIZE_CALLS = ("reshape", "view", "expand", "unflatten")
"""Calls whose arguments are sizes of the result."""
ELEMENTS_STAY = (*SIZE_CALLS, "flatten", "permute", "transpose", "swapaxes", "movedim", "unsqueeze", "squeeze")
"""Calls that neither add nor drop elements, whatever their arguments are."""


class DataMovement(Op):
    """Each element of a result is an element of an operand, or a constant that the call adds.

    Which one it is follows from making the call on element indices in place of values. Where slices go, sizes among the
    arguments are rewritten, and the call is made again on the indices of the live elements: `can_rewrite` is true if
    that gives the live results, in all executions.

    Attributes:
        operands: The tensors whose elements move.
        moved_dims: Dimensions of the operands along which a size says which elements are taken or added.
        source_indices: By execution and result, its elements' indices among the operands' elements, -1 for constants
            that the call adds.
    """

    def __init__(self, trace: Trace, node: fx.Node) -> None:
        super().__init__(trace, node)
        first = node.args[0]
        sources = first if isinstance(first, list | tuple) else [first]
        moved = [trace.tensors.get(source) for source in sources]  # type: ignore[arg-type]
        self.operands = list(dict.fromkeys(tensor for tree in moved for tensor in abstract_tensors(tree)))
        others = [tensor for tensor in self.inputs if tensor not in self.operands]
        if not all(bool(tensor.known.all()) for tensor in others):
            raise ValueError("where elements go depends on the input")
        self.moved_dims = self._find_moved_dims()
        self.source_indices = [self._find_source_indices(execution) for execution in trace.executions]

    @property
    def preserves_order(self) -> bool:
        """Whether the one result has the operand's elements in the same order."""
        sources = self.source_indices[0]
        return len(sources) == 1 and torch.equal(sources[0].flatten(), torch.arange(self._operand_elements(0)))

    def propagate_constants(self) -> None:
        """Constants move along."""
        known = torch.cat([operand.known.flatten() for operand in self.operands])
        values = tensors(self.trace.evaluate(self.node))
        for out, value, source in zip(self.outputs, values, self.source_indices[0], strict=True):
            out.set_constants(value, known[source] | (source < 0))
            out.is_input = all(operand.is_input for operand in self.operands)

    def constants_of_every_size(self, tensor: AbstractTensor) -> Tensor:
        """Where a size says which elements are taken, they must all be the same, and the same as added constants."""
        if not self.moved_dims:
            return torch.ones(tensor.shape, dtype=torch.bool)
        uniform = torch.cat([operand.is_uniform_along(self.moved_dims).flatten() for operand in self.operands])
        source = self.source_indices[0][self.outputs.index(tensor)]
        held = uniform[source] | (source < 0)
        if call_name(self.node) == "pad":
            value = self.node.args[3] if len(self.node.args) > 3 else self.node.kwargs.get("value")
            added = 0.0 if value is None else value
            same = tensor.constants == added if isinstance(added, int | float) else torch.zeros_like(held)
            held = same & tensor.is_uniform_along(self.moved_dims)
        return held

    def propagate_liveness(self) -> None:
        """An element that is live in a result is live in its operand, and the other way round."""
        read = torch.zeros(self._operand_elements(0), dtype=torch.bool)
        for out, source in zip(self.outputs, self.source_indices[0], strict=True):
            if out.needed:
                read[source[out.live_elements() & (source >= 0)]] = True
        for operand, start in self._starts(0):
            operand.mark_elements_live(read[start : start + operand.constants.numel()].view(operand.shape))
        for operand in self.operands:
            for dim in self.moved_dims if operand.needed else ():
                operand.mark_live_along(dim, torch.ones_like(operand.live[dim]))
        live = torch.cat([operand.live_elements().flatten() for operand in self.operands])
        for out, source in zip(self.outputs, self.source_indices[0], strict=True):
            if out.needed:
                out.mark_elements_live(live[source] & (source >= 0))
        for other in self.inputs:
            if other not in self.operands:
                other.mark_all_live()

    def can_rewrite(self) -> bool:
        """Return whether the rewritten call, made on the indices of live elements, gives the live results."""
        if not self._shrinks():
            return True
        try:
            return all(self._gives_live_results(execution) for execution in self.trace.executions)
        except CALL_ERRORS:
            return False

    def rewrite(self) -> None:
        """Write the new arguments, where any slices go."""
        if self._shrinks():
            args, kwargs = self._smaller_arguments()
            if _becomes_split(self.node, args):
                self.node.target = "split" if self.node.op == "call_method" else torch.split
            self.node.args, self.node.kwargs = args, kwargs

    def _shrinks(self) -> bool:
        return any(tensor.shrinks() for tensor in (*self.operands, *self.outputs))

    def _gives_live_results(self, execution: int) -> bool:
        args, kwargs = self._smaller_arguments()
        if _becomes_split(self.node, args):
            (operand,) = self.operands
            found = list(torch.split(self._indices(operand, 0, execution, smaller=True), args[1], args[2]))
        else:
            found = self._move_indices(args, kwargs, 0, execution, smaller=True)
        return len(found) == len(self.outputs) and all(
            not out.needed or torch.equal(indices.long(), out.select_live(source, execution).clamp(min=0))
            for indices, out, source in zip(found, self.outputs, self.source_indices[execution], strict=True)
        )

    def _smaller_arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments for the live parts, sizes rewritten."""
        node, args, (out, *_) = self.node, list(self.node.args), self.outputs
        name = "" if node.op == "call_module" else call_name(node)
        if name == "unflatten":
            return self._smaller_unflatten(), dict(node.kwargs)
        if name in SIZE_CALLS:
            listed = len(args) == 2 and isinstance(args[1], list | tuple)
            sizes = list(args[1]) if listed else args[1:]  # type: ignore[arg-type]
            if len(sizes) == len(out.shape):
                sizes = [self._smaller_size(size, out, dim) for dim, size in enumerate(sizes)]
            return ((args[0], sizes) if listed else (args[0], *sizes)), dict(node.kwargs)
        if name in ("split", "chunk"):
            dim = args[2] if len(args) > 2 else node.kwargs.get("dim", 0)
            assert isinstance(dim, int)
            if not out.is_dynamic(dim):
                return (args[0], [part.live_count(dim) for part in self.outputs], dim), {}
        if name in ("cat", "concat") and isinstance(args[0], list | tuple):
            return ([part for part in args[0] if self._is_needed(part)], *args[1:]), dict(node.kwargs)
        if name == "pad":
            return (args[0], self._smaller_padding(list(args[1])), *args[2:]), dict(node.kwargs)  # type: ignore[arg-type]
        return tuple(args), dict(node.kwargs)

    def _find_moved_dims(self) -> list[int]:
        """Return the dimensions of the operands along which a size says which elements are taken or added."""
        node, name, rank = self.node, call_name(self.node), max(len(operand.shape) for operand in self.operands)
        if not self.trace.depends_on_size((node.args, node.kwargs)) or name in ELEMENTS_STAY:
            return []
        if name == "pad" and len(node.args) > 1 and isinstance(node.args[1], list | tuple):
            places = [place for place, amount in enumerate(node.args[1]) if self.trace.depends_on_size(amount)]
            return sorted({rank - 1 - place // 2 for place in places})
        if name == "getitem":
            index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
            if not any(isinstance(part, fx.Node) and part in self.trace.tensors for part in index):
                return self._sliced_dims(index, rank)
        return list(range(rank))

    def _sliced_dims(self, index: tuple[Any, ...], rank: int) -> list[int]:
        """Return the dimensions that an index of numbers and slices takes by a size."""
        taken, dim = len([part for part in index if part is not None and part is not Ellipsis]), 0
        sliced = []
        for part in index:
            if part is Ellipsis:
                dim += rank - taken
            elif part is not None:
                if self.trace.depends_on_size(part):
                    sliced.append(dim)
                dim += 1
        return sliced

    def _smaller_unflatten(self) -> tuple[Any, ...]:
        """Return (operand, dimension, sizes of what that dimension becomes), sizes rewritten."""
        source, dim, sizes = cast(tuple[Any, int, Sequence[Any]], self.node.args)
        first = dim % len(self.operands[0].shape)
        return source, dim, [self._smaller_size(size, self.outputs[0], first + n) for n, size in enumerate(sizes)]

    def _is_needed(self, operand: Any) -> bool:
        tensor = self.trace.tensor_of(operand)
        return tensor is None or tensor.needed

    def _smaller_size(self, size: Any, out: AbstractTensor, dim: int) -> Any:
        """Return a size argument; a plain number only where the given one would be wrong for the smaller network."""
        if not out.is_dynamic(dim) and self.trace.depends_on_size(size):
            raise ValueError("a dimension's size depends on the size of the inputs")
        fits = out.is_dynamic(dim) or self.trace.resolve_smaller(size) in (-1, out.live_count(dim))
        return size if fits else out.live_count(dim)

    def _smaller_padding(self, padding: list[Any]) -> list[Any]:
        """Return the padding without dead slices; it comes last dimension first, before and after."""
        (out,), (operand,) = self.outputs, self.operands
        for position in range(0, len(padding), 2):
            dim = len(out.shape) - 1 - position // 2
            if not out.live[dim].all():
                before, size = int(padding[position]), operand.shape[dim]
                padding[position] = int(out.live[dim][:before].sum())
                padding[position + 1] = int(out.live[dim][before + size :].sum())
        return padding

    def _find_source_indices(self, execution: int) -> list[Tensor]:
        """Return, for each result, its elements' indices among the operands' elements, -1 for added constants.

        The call is made on indices from 0 and on indices from `count`: what does not shift is no element.
        """
        count = self._operand_elements(execution)
        plain, shifted = (
            self._move_indices(self.node.args, self.node.kwargs, first, execution) for first in (0, count)
        )
        return [torch.where(b - a == count, a, -1).long() for a, b in zip(plain, shifted, strict=True)]

    def _move_indices(self, args: Any, kwargs: Any, first: int, execution: int, smaller: bool = False) -> list[Tensor]:
        """Return the results of the call on the operands' element indices, counted from `first`."""

        def value_of(tensor: AbstractTensor) -> Tensor:
            if tensor in self.operands:
                return self._indices(tensor, first, execution, smaller)
            return tensor.with_zeros(execution)

        return tensors(self.trace.call(self.node, args, kwargs, value_of, execution, smaller))

    def _indices(self, operand: AbstractTensor, first: int, execution: int, smaller: bool) -> Tensor:
        start = first + next(start for other, start in self._starts(execution) if other is operand)
        shape = operand.shapes[execution]
        indices = torch.arange(start, start + math.prod(shape), dtype=torch.float64).view(shape)
        return operand.select_live(indices, execution) if smaller else indices

    def _starts(self, execution: int) -> list[tuple[AbstractTensor, int]]:
        """Return each operand with the index of its first element."""
        sizes = [math.prod(operand.shapes[execution]) for operand in self.operands]
        return list(zip(self.operands, accumulate([0, *sizes[:-1]]), strict=True))

    def _operand_elements(self, execution: int) -> int:
        return sum(math.prod(operand.shapes[execution]) for operand in self.operands)


def _becomes_split(node: fx.Node, args: tuple[Any, ...]) -> bool:
    """Return whether a `chunk` now has a list of sizes, which only `split` takes."""
    return call_name(node) == "chunk" and len(args) > 1 and isinstance(args[1], list)


def is_data_movement(kind: type[nn.Module]) -> bool:
    """Return whether a module only moves elements, by arguments that do not depend on the number of channels."""
    return kind in (nn.Flatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ZeroPad1d, nn.ZeroPad2d)
