"""Calls that only move elements: reshape, transpose, cat, split, pad, indexing, ..."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from hyperflux.deploy.compact.ops import Op
from hyperflux.deploy.compact.slots import Slot
from hyperflux.deploy.compact.tracing import Trace, called, slots_in

SIZED = ("reshape", "view", "expand")
"""Calls whose arguments are sizes of the result."""


class Movement(Op):
    """Each element of the results is one of the operands', or a constant of the call's own.

    Which one is found by running the call on the elements' numbers. Where slices go, sizes among the arguments are
    written anew, and the call is run again on the numbers of the smaller tensors: it `fits` if that gives the smaller
    results.
    """

    def __init__(self, trace: Trace, node: fx.Node) -> None:
        super().__init__(trace, node)
        first = node.args[0]
        sources = first if isinstance(first, list | tuple) else [first]
        moved = [
            slot for source in sources if isinstance(source, fx.Node) for slot in slots_in(trace.slots.get(source))
        ]
        self.moved = list({id(slot): slot for slot in moved}.values())
        starts = torch.tensor([0, *(slot.value.numel() for slot in self.moved)]).cumsum(0).tolist()
        self._start = dict(zip(map(id, self.moved), starts, strict=False))
        self._count = starts[-1]
        shifted = self._numbers(node.args, self._count)
        plain = self._numbers(node.args, 0)
        self._from = [torch.where(b - a == self._count, a, -1).long() for a, b in zip(plain, shifted, strict=True)]

    def evaluate(self) -> None:
        """Constants move along."""
        values = _tensors(self.trace.run(self.node, lambda slot: _filled(slot, slot in self.moved)))
        known = torch.cat([slot.known.flatten() for slot in self.moved])
        for slot, value, source in zip(self.outputs, values, self._from, strict=True):
            slot.learn(value, known[source] | (source < 0))
            slot.raw = all(moved.raw for moved in self.moved)

    def spread(self) -> None:
        """An element stays in the results where it does in the operands, and the other way round."""
        wanted = torch.zeros(self._count, dtype=torch.bool)
        for slot, source in zip(self.outputs, self._from, strict=True):
            if slot.needed:
                wanted[source[slot.elements() & (source >= 0)]] = True
        for slot in self.moved:
            slot.require_elements(wanted[self._range(slot)].view(slot.shape))
        kept = torch.cat([slot.elements().flatten() for slot in self.moved])
        for slot, source in zip(self.outputs, self._from, strict=True):
            if slot.needed:
                slot.require_elements(kept[source] & (source >= 0))
        for slot in self.inputs:
            if slot not in self.moved:
                slot.require_all()

    def fits(self) -> bool:
        """Run the new call on the numbers of what stays."""
        if not any(slot.is_cut() for slot in (*self.moved, *self.outputs)):
            return True
        try:
            found = self._numbers(self._new_args(), 0, cut=True)
        except (RuntimeError, ValueError, TypeError, IndexError):
            return False
        return len(found) == len(self.outputs) and all(
            not slot.needed or torch.equal(part.long(), slot.cut(torch.where(source < 0, 0, source)))
            for part, slot, source in zip(found, self.outputs, self._from, strict=True)
        )

    def rewrite(self) -> None:
        """Write the new arguments, where any slices go."""
        if any(slot.is_cut() for slot in (*self.moved, *self.outputs)):
            if self._name() == "chunk":
                self.node.target = "split" if self.node.op == "call_method" else torch.split
            self.node.args, self.node.kwargs = self._new_args(), self._kwargs(cut=True)

    def _new_args(self) -> tuple[Any, ...]:
        """The arguments with sizes of what stays."""
        args, name, (out, *_) = list(self.node.args), self._name(), self.outputs
        if name in SIZED and len(self.outputs) == 1:
            listed = len(args) == 2 and isinstance(args[1], list | tuple)
            sizes = list(args[1]) if listed else args[1:]  # type: ignore[arg-type]
            if len(sizes) == len(out.shape):
                sizes = [self._size(size, out, dim) for dim, size in enumerate(sizes)]
            return (args[0], sizes) if listed else (args[0], *sizes)
        if name in ("split", "chunk"):
            dim = args[2] if len(args) > 2 else self.node.kwargs.get("dim", 0)
            assert isinstance(dim, int)
            return (args[0], [slot.count(dim) for slot in self.outputs], dim)
        if name == "pad":
            return (args[0], self._pads(list(args[1])), *args[2:])  # type: ignore[arg-type]
        return tuple(args)

    def _size(self, size: Any, out: Slot, dim: int) -> Any:
        """A size argument: a number where the one that stands there, or is computed there, would be wrong."""
        now = self.trace.scalars_now.get(size) if isinstance(size, fx.Node) else size
        return size if now in (-1, out.count(dim)) else out.count(dim)

    def _pads(self, pads: list[Any]) -> list[Any]:
        """Padding that leaves out what goes; padding comes last dimension first, before and after."""
        (out,), (operand,) = self.outputs, self.moved
        for place in range(0, len(pads), 2):
            dim = len(out.shape) - 1 - place // 2
            if not out.kept[dim].all():
                before, size = int(pads[place]), operand.shape[dim]
                kept = out.kept[dim]
                pads[place] = int(kept[:before].sum())
                pads[place + 1] = int(kept[before + size :].sum())
        return pads

    def _name(self) -> str:
        return "" if self.node.op == "call_module" else called(self.node)

    def _range(self, slot: Slot) -> slice:
        start = self._start[id(slot)]
        return slice(start, start + slot.value.numel())

    def _numbers(self, args: Any, first: int, cut: bool = False) -> list[Tensor]:
        """The results of the call on the operands' elements, numbered from `first` on."""

        def numbered(slot: Slot) -> Tensor:
            if id(slot) not in self._start:
                return _filled(slot, False)
            start, size = self._start[id(slot)] + first, slot.value.numel()
            numbers = torch.arange(start, start + size, dtype=torch.float64).view(slot.shape)
            return slot.cut(numbers) if cut else numbers

        scalars = self.trace.scalars_now if cut else self.trace.scalars
        return _tensors(self.trace.call(self.node, args, self._kwargs(cut), numbered, scalars))

    def _kwargs(self, cut: bool) -> dict[str, Any]:
        """`chunk` becomes a split, whose arguments are all positional."""
        return {} if cut and self._name() in ("split", "chunk") else dict(self.node.kwargs)


def _filled(slot: Slot, moved: bool) -> Tensor:
    """Constants of an operand; an index keeps its own type."""
    return slot.filled() if moved else slot.filled().to(slot.dtype)


def _tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def is_moving_module(module: nn.Module) -> bool:
    """Whether a module only moves elements, by no argument that depends on the number of channels."""
    return type(module) in (nn.Flatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ZeroPad1d, nn.ZeroPad2d)
