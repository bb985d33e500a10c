"""Calls that only move elements: reshape, transpose, cat, split, pad, indexing, ..."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, fx, nn

from hyperflux.deploy.compact.ops import Op
from hyperflux.deploy.compact.runs import FAILURES, Trace, leaves, slots_in
from hyperflux.deploy.compact.slots import Slot
from hyperflux.deploy.compact.tracing import called

SIZED = ("reshape", "view", "expand")
"""Calls whose arguments are sizes of the result."""


class Movement(Op):
    """Each element of the results is one of the operands', or a constant of the call's own.

    Which one is found by running the call on the elements' numbers. Where slices go, sizes among the arguments are
    written anew, and the call is run again on the numbers of the smaller tensors: it `fits` if that gives the smaller
    results, in both runs.
    """

    def __init__(self, trace: Trace, node: fx.Node) -> None:
        super().__init__(trace, node)
        first = node.args[0]
        sources = first if isinstance(first, list | tuple) else [first]
        moved = [slot for source in sources for slot in slots_in(trace.slots.get(source))]  # type: ignore[arg-type]
        self.moved = list({id(slot): slot for slot in moved}.values())
        others = [slot for slot in self.inputs if slot not in self.moved]
        if not all(bool(slot.known.all()) for slot in others):
            raise ValueError("where elements go depends on the input")
        self._from = [self._sources(run) for run in (0, 1)]

    @property
    def keeps_order(self) -> bool:
        """Whether the one result has the operand's elements in their own order."""
        return len(self._from[0]) == 1 and torch.equal(self._from[0][0].flatten(), torch.arange(self._count(0)))

    def evaluate(self) -> None:
        """Constants move along."""
        known = torch.cat([slot.known.flatten() for slot in self.moved])
        for slot, value, source in zip(self.outputs, _tensors(self.trace.run(self.node)), self._from[0], strict=True):
            slot.learn(value, known[source] | (source < 0))
            slot.raw = all(moved.raw for moved in self.moved)

    def spread(self) -> None:
        """An element stays in the results where it does in the operands, and the other way round."""
        wanted = torch.zeros(self._count(0), dtype=torch.bool)
        for slot, source in zip(self.outputs, self._from[0], strict=True):
            if slot.needed:
                wanted[source[slot.elements() & (source >= 0)]] = True
        for slot, start in self._starts(0):
            slot.require_elements(wanted[start : start + slot.value.numel()].view(slot.shape))
        kept = torch.cat([slot.elements().flatten() for slot in self.moved])
        for slot, source in zip(self.outputs, self._from[0], strict=True):
            if slot.needed:
                slot.require_elements(kept[source] & (source >= 0))
        for slot in self.inputs:
            if slot not in self.moved:
                slot.require_all()

    def fits(self) -> bool:
        """Run the new call on the numbers of what stays."""
        if not self._changes():
            return True
        try:
            return all(self._fits(run) for run in (0, 1))
        except FAILURES:
            return False

    def rewrite(self) -> None:
        """Write the new arguments, where any slices go."""
        if self._changes():
            args, kwargs = self._new_call()
            if _splits(self.node, args):
                self.node.target = "split" if self.node.op == "call_method" else torch.split
            self.node.args, self.node.kwargs = args, kwargs

    def _changes(self) -> bool:
        return any(slot.is_cut() for slot in (*self.moved, *self.outputs))

    def _fits(self, run: int) -> bool:
        args, kwargs = self._new_call()
        if _splits(self.node, args):
            (moved,) = self.moved
            found = list(torch.split(self._numbered(moved, 0, run, cut=True), args[1], args[2]))
        else:
            found = self._moved(args, kwargs, 0, run, cut=True)
        return len(found) == len(self.outputs) and all(
            not slot.needed or torch.equal(part.long(), slot.cut(source, run).clamp(min=0))
            for part, slot, source in zip(found, self.outputs, self._from[run], strict=True)
        )

    def _new_call(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments with sizes of what stays."""
        node, args, (out, *_) = self.node, list(self.node.args), self.outputs
        name = "" if node.op == "call_module" else called(node)
        if name in SIZED:
            listed = len(args) == 2 and isinstance(args[1], list | tuple)
            sizes = list(args[1]) if listed else args[1:]  # type: ignore[arg-type]
            if len(sizes) == len(out.shape):
                sizes = [self._size(size, out, dim) for dim, size in enumerate(sizes)]
            return ((args[0], sizes) if listed else (args[0], *sizes)), dict(node.kwargs)
        if name in ("split", "chunk"):
            dim = args[2] if len(args) > 2 else node.kwargs.get("dim", 0)
            assert isinstance(dim, int)
            if not out.is_free(dim):
                return (args[0], [slot.count(dim) for slot in self.outputs], dim), {}
        if name in ("cat", "concat") and isinstance(args[0], list | tuple):
            return ([part for part in args[0] if self._stays(part)], *args[1:]), dict(node.kwargs)
        if name == "pad":
            return (args[0], self._pads(list(args[1])), *args[2:]), dict(node.kwargs)  # type: ignore[arg-type]
        return tuple(args), dict(node.kwargs)

    def _stays(self, operand: Any) -> bool:
        slot = self.trace.slot(operand)
        return slot is None or slot.needed

    def _size(self, size: Any, out: Slot, dim: int) -> Any:
        """A size argument: a number where the one that stands there, or is computed there, would be wrong."""
        return size if out.is_free(dim) or self.trace.number_now(size) in (-1, out.count(dim)) else out.count(dim)

    def _pads(self, pads: list[Any]) -> list[Any]:
        """Padding that leaves out what goes; padding comes last dimension first, before and after."""
        (out,), (operand,) = self.outputs, self.moved
        for place in range(0, len(pads), 2):
            dim = len(out.shape) - 1 - place // 2
            if not out.kept[dim].all():
                before, size = int(pads[place]), operand.shape[dim]
                pads[place] = int(out.kept[dim][:before].sum())
                pads[place + 1] = int(out.kept[dim][before + size :].sum())
        return pads

    def _sources(self, run: int) -> list[Tensor]:
        """For each result, the number of the element that each of its elements is, −1 where it is none of them."""
        count = self._count(run)
        plain, shifted = (self._moved(self.node.args, self.node.kwargs, first, run) for first in (0, count))
        return [torch.where(b - a == count, a, -1).long() for a, b in zip(plain, shifted, strict=True)]

    def _moved(self, args: Any, kwargs: Any, first: int, run: int, cut: bool = False) -> list[Tensor]:
        """The results of the call on the operands' elements, numbered from `first` on."""

        def numbered(slot: Slot) -> Tensor:
            return self._numbered(slot, first, run, cut) if slot in self.moved else slot.filled(run)

        return _tensors(self.trace.numbered(self.node, args, kwargs, numbered, run, now=cut))

    def _numbered(self, slot: Slot, first: int, run: int, cut: bool) -> Tensor:
        start = first + next(start for other, start in self._starts(run) if other is slot)
        shape = slot.shapes[run]
        numbers = torch.arange(start, start + math.prod(shape), dtype=torch.float64).view(shape)
        return slot.cut(numbers, run) if cut else numbers

    def _starts(self, run: int) -> list[tuple[Slot, int]]:
        """Each operand, and the number of its first element."""
        sizes = [math.prod(slot.shapes[run]) for slot in self.moved]
        return list(zip(self.moved, accumulate([0, *sizes[:-1]]), strict=True))

    def _count(self, run: int) -> int:
        return sum(math.prod(slot.shapes[run]) for slot in self.moved)


def _splits(node: fx.Node, args: tuple[Any, ...]) -> bool:
    """Whether a `chunk` has got sizes for arguments, which a `split` takes."""
    return called(node) == "chunk" and len(args) > 1 and isinstance(args[1], list)


def _tensors(result: Any) -> list[Tensor]:
    return [leaf for leaf in leaves(result) if isinstance(leaf, Tensor)]


def is_moving_module(module: nn.Module) -> bool:
    """Whether a module only moves elements, by no argument that depends on the number of channels."""
    return type(module) in (nn.Flatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ZeroPad1d, nn.ZeroPad2d)
