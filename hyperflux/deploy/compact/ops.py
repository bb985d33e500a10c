"""What compaction must know of a call: which results are constants, which slices go only together, what to rewrite.

Every rule is a subclass of `Op`. A call that nothing is known of is an `Opaque`: it keeps whatever it touches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from hyperflux.deploy.compact.runs import Trace, slots_in
from hyperflux.deploy.compact.slots import Slot
from hyperflux.deploy.compact.tracing import called, works_in_place


class Op:
    """A call in the graph. `evaluate` runs once in the graph's order, `spread` backwards until nothing grows."""

    why = ""
    """Why something that could be cut is left alone; empty where nothing is."""

    def __init__(self, trace: Trace, node: fx.Node) -> None:
        self.trace, self.node = trace, node
        self.inputs = trace.inputs(node)
        self.outputs = slots_in(trace.slots.get(node))

    @property
    def needed(self) -> bool:
        """Whether anybody reads a result."""
        return any(slot.needed for slot in self.outputs)

    def evaluate(self) -> None:
        """Set the constants among the results from those among the inputs."""

    def spread(self) -> None:
        """Keep what has to be kept together, inputs and results; only ever more. Called where `needed`."""

    def rewrite(self) -> None:
        """Make the call fit the smaller tensors. Called once, where `needed`, when everything that stays is known."""

    def fits(self) -> bool:
        """Whether `rewrite` will be able to; where not, the call is treated as opaque."""
        return True


class Source(Op):
    """An input of the network or a parameter that the graph reads: a parameter is a constant, and can be cut."""

    def evaluate(self) -> None:
        """A parameter is known, an input is not."""
        for slot in self.outputs:
            slot.raw = self.node.op == "placeholder"
            if self.node.op == "get_attr":
                value = self._parameter().detach().double()
                slot.learn(value, torch.ones_like(value, dtype=torch.bool))

    def spread(self) -> None:
        """Inputs of the network stay whole; so does a parameter that several calls read."""
        if self.node.op == "placeholder" or self._is_shared():
            for slot in self.outputs:
                slot.require_all()

    def rewrite(self) -> None:
        """Cut the parameter."""
        if self.node.op == "get_attr" and self.outputs[0].is_cut():
            owner, _, name = str(self.node.target).rpartition(".")
            module, smaller = self.trace.module.get_submodule(owner), self.outputs[0].cut(self._parameter().detach())
            if isinstance(getattr(module, name), torch.nn.Parameter):
                setattr(module, name, torch.nn.Parameter(smaller))
            else:
                setattr(module, name, smaller)

    def _parameter(self) -> Tensor:
        owner, _, name = str(self.node.target).rpartition(".")
        value: Tensor = getattr(self.trace.module.get_submodule(owner), name)
        return value

    def _is_shared(self) -> bool:
        readers = [n for n in self.trace.graph.nodes if n.op == "get_attr" and n.target == self.node.target]
        owner = str(self.node.target).rpartition(".")[0]
        called = any(n.op == "call_module" and n.target == owner for n in self.trace.graph.nodes)
        return len(readers) > 1 or called


class Opaque(Op):
    """Keeps everything that it reads and gives."""

    def __init__(self, trace: Trace, node: fx.Node, why: str = "") -> None:
        super().__init__(trace, node)
        self.why = why

    def spread(self) -> None:
        """All of it."""
        for slot in (*self.inputs, *self.outputs):
            slot.require_all()


class Elementwise(Op):
    """Activations, sums, products, casts: every result depends on one element of each operand, shapes broadcast."""

    def evaluate(self) -> None:
        """Known where all operands are, and where a product has a factor 0."""
        (out,) = self.outputs
        known = torch.ones(out.shape, dtype=torch.bool)
        for slot in self.inputs:
            known &= slot.known.expand(out.shape)
        value = self.trace.run(self.node)
        if self._is_product() and len(self.inputs) > 1:
            for slot in self.inputs:
                zero = (slot.value == 0).expand(out.shape)
                value, known = value.masked_fill(zero, 0.0), known | zero
        out.learn(value, known)
        out.raw = len(self.inputs) == 1 and self.inputs[0].raw

    def spread(self) -> None:
        """Slices of an operand and of the result go together, but for an operand that becomes a constant."""
        (out,) = self.outputs
        folded = self._constant_operand()
        for slot in self.inputs:
            if slot is folded:
                continue
            slot.require([mask if self._aligned(slot, d) else _one() for d, mask in self._pairs(slot)])
            for dim in range(len(slot.shape)):
                if self._aligned(slot, dim):
                    out.require_along(dim + len(out.shape) - len(slot.shape), slot.kept[dim])

    def rewrite(self) -> None:
        """Put a buffer in the place of an operand that is the same for every input."""
        slot = self._constant_operand()
        if slot is None:
            return
        (out,) = self.outputs
        value = _narrowed(slot.value)
        for dim, size in enumerate(value.shape):
            if size > 1:
                value = value.index_select(dim, out.places(dim + len(out.shape) - value.ndim))
        name = f"{self.node.name}_constant"
        self.trace.module.register_buffer(name, value.to(slot.dtype))
        source = self._source(slot)
        with self.trace.graph.inserting_before(self.node):
            self.node.replace_input_with(source, self.trace.graph.get_attr(name))

    def _pairs(self, slot: Slot) -> list[tuple[int, Tensor]]:
        """(dimension of the operand, mask of the result there)."""
        (out,) = self.outputs
        return list(enumerate(out.kept[len(out.shape) - len(slot.shape) :]))

    def _aligned(self, slot: Slot, dim: int) -> bool:
        (out,) = self.outputs
        return slot.shape[dim] == out.shape[dim + len(out.shape) - len(slot.shape)]

    def _source(self, slot: Slot) -> fx.Node:
        return next(node for node in self.node.all_input_nodes if slot in slots_in(self.trace.slots.get(node)))

    def _is_product(self) -> bool:
        return called(self.node).strip("_") in ("mul", "imul", "multiply")

    def _constant_operand(self) -> Slot | None:
        """The computed operand that is known whole and varies along one dimension at most, if the other is not."""
        (out,) = self.outputs
        if len(self.inputs) != 2:
            return None
        known = [bool(slot.known.all()) for slot in self.inputs]
        if sum(known) != 1:
            return None
        constant, other = self.inputs if known[0] else reversed(self.inputs)
        source = self._source(constant)
        changed = source is self.node.args[0] and works_in_place(self.trace.module, self.node)
        if source.op == "get_attr" or other.shapes != out.shapes or changed:
            return None
        narrow = _narrowed(constant.value)
        return constant if sum(size > 1 for size in narrow.shape) <= 1 else None


class Fibers(Op):
    """Pools, means, softmax, layer norm: each result depends on a whole fiber along `dims` of the one operand.

    A pool has the same dimensions in its result, a reduction without `keepdim` has lost them.
    """

    def __init__(self, trace: Trace, node: fx.Node, dims: Sequence[int]) -> None:
        super().__init__(trace, node)
        self.operand = self.inputs[0]
        self.dims = sorted(dim % len(self.operand.shape) for dim in dims)

    def evaluate(self) -> None:
        """Known where the whole fiber is."""
        (out,) = self.outputs
        value = self.trace.run(self.node)
        known = self.operand.known.all() if not self.dims else self.operand.known
        for dim in self.dims:
            known = known.all(dim, keepdim=True)
        if len(out.shape) < len(self.operand.shape):
            known = known.squeeze(self.dims)
        out.learn(value, known.expand(out.shape))

    def spread(self) -> None:
        """Slices across the other dimensions go together, in the operand and the result."""
        (out,) = self.outputs
        places = self._places()
        every = [torch.ones_like(mask) for mask in self.operand.kept]
        self.operand.require([every[d] if d in self.dims else out.kept[places[d]] for d in range(len(every))])
        for dim, mask in enumerate(out.kept):
            source = next((d for d, place in places.items() if place == dim), None)
            out.require_along(dim, torch.ones_like(mask) if source in self.dims else self.operand.kept[source])  # type: ignore[index]
        for other in self.inputs[1:]:
            other.require_all()

    def _places(self) -> dict[int, int]:
        """Where a dimension of the operand is in the result."""
        (out,) = self.outputs
        dims = range(len(self.operand.shape))
        if len(out.shape) == len(self.operand.shape):
            return {dim: dim for dim in dims}
        return {dim: place for place, dim in enumerate(dim for dim in dims if dim not in self.dims)}


def _one() -> Tensor:
    return torch.ones(1, dtype=torch.bool)


def _narrowed(value: Tensor) -> Tensor:
    """A tensor with one slice along every dimension in which all are equal."""
    for dim, size in enumerate(value.shape):
        first = value.narrow(dim, 0, 1)
        if size > 1 and torch.equal(value, first.expand_as(value)):
            value = first
    return value
