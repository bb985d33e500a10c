"""The rules of operations: how constants and live slices pass through a call, and how to rewrite it.

Every rule is a subclass of `Op`. A call without a rule of its own is `Opaque`: it keeps whatever it touches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from hyperflux.backends.torch.compact.abstract_tensor import AbstractTensor
from hyperflux.backends.torch.compact.aliasing import is_in_place
from hyperflux.backends.torch.compact.execution import leaves
from hyperflux.backends.torch.compact.layer_types import layer_type
from hyperflux.backends.torch.compact.nodes import call_name
from hyperflux.backends.torch.compact.trace import Trace, abstract_tensors

AVERAGES = ("maxpool", "max_pool", "avgpool", "avg_pool", "upsample", "interpolate", "mean", "amax", "amin")
"""Reductions that give, of equal values, that value."""


class Op:
    """The rule of one call in the graph.

    Attributes:
        reason: Why a call that might be shrunk is left alone; empty otherwise.
        inputs: The abstract tensors that the call reads, each once.
        outputs: The abstract tensors that it gives.
        is_size_proof: Whether `constants_of_every_size` alone shows that a constant of one execution is one of all.
    """

    reason = ""
    is_size_proof = False

    def __init__(self, trace: Trace, node: fx.Node) -> None:
        self.trace, self.node = trace, node
        self.inputs = trace.operands(node)
        self.outputs = abstract_tensors(trace.tensors.get(node))

    @property
    def needed(self) -> bool:
        """Whether any call reads a result."""
        return any(tensor.needed for tensor in self.outputs)

    def propagate_constants(self) -> None:
        """Set the constants of the results from those of the inputs. Called once, in the order of the graph."""

    def constants_of_every_size(self, tensor: AbstractTensor) -> Tensor:
        """Return the mask of a result's constants that hold in every size of input, given that the operands' do.

        `tensor` has only constants that were the same in all executions. A call whose arguments are computed from sizes
        may do in another size what it did in none of them.
        """
        return torch.full(tensor.shape, not self._depends_on_size())

    def _depends_on_size(self) -> bool:
        return self.trace.depends_on_size((self.node.args, self.node.kwargs))

    def propagate_liveness(self) -> None:
        """Mark live what must stay together, inputs and results. Called, where `needed`, until nothing changes."""

    def can_rewrite(self) -> bool:
        """Return whether `rewrite` can make the call fit its live parts; if not, the call is treated as opaque."""
        return True

    def rewrite(self) -> None:
        """Make the call fit the live parts. Called once, where `needed`, after the analysis."""


class Source(Op):
    """An input of the network, or a parameter or buffer that the graph reads: a constant that can be cut."""

    def propagate_constants(self) -> None:
        """A parameter is a constant, an input is not."""
        for tensor in self.outputs:
            tensor.is_input = self.node.op == "placeholder"
            if self.node.op == "get_attr":
                value = self._parameter().detach().double()
                tensor.set_constants(value, torch.ones_like(value, dtype=torch.bool))

    def propagate_liveness(self) -> None:
        """Inputs of the network stay whole; so does a parameter that several calls read."""
        if self.node.op == "placeholder" or self.is_shared():
            for tensor in self.outputs:
                tensor.mark_all_live()

    def rewrite(self) -> None:
        """Cut the parameter."""
        if self.node.op == "get_attr" and self.outputs[0].shrinks():
            owner, _, name = str(self.node.target).rpartition(".")
            module = self.trace.module.get_submodule(owner)
            smaller = self.outputs[0].select_live(self._parameter().detach())
            if isinstance(getattr(module, name), torch.nn.Parameter):
                setattr(module, name, torch.nn.Parameter(smaller))
            else:
                setattr(module, name, smaller)

    def _parameter(self) -> Tensor:
        owner, _, name = str(self.node.target).rpartition(".")
        value: Tensor = getattr(self.trace.module.get_submodule(owner), name)
        return value

    @property
    def is_parameter(self) -> bool:
        """Whether it is a parameter."""
        return self.node.op == "get_attr" and isinstance(self._parameter(), torch.nn.Parameter)

    def is_shared(self) -> bool:
        """Whether several calls read the parameter, so that it stays whole."""
        readers = [n for n in self.trace.graph.nodes if n.op == "get_attr" and n.target == self.node.target]
        owner = str(self.node.target).rpartition(".")[0]
        called = any(n.op == "call_module" and f"{owner}.".startswith(f"{n.target}.") for n in self.trace.graph.nodes)
        return len(readers) > 1 or called


class Opaque(Op):
    """A call that keeps everything it reads and gives."""

    def __init__(self, trace: Trace, node: fx.Node, reason: str = "") -> None:
        super().__init__(trace, node)
        self.reason = reason

    def propagate_liveness(self) -> None:
        """Inputs and results stay whole."""
        for tensor in (*self.inputs, *self.outputs):
            tensor.mark_all_live()


class Elementwise(Op):
    """Activations, sums, products, casts: each result depends on one element per operand; shapes broadcast."""

    def propagate_constants(self) -> None:
        """A result is constant where all operands are, and where a product has a factor 0."""
        (out,) = self.outputs
        known = torch.ones(out.shape, dtype=torch.bool)
        for operand in self.inputs:
            known &= operand.known.expand(out.shape)
        value = self.trace.evaluate(self.node)
        if self._is_product() and len(self.inputs) > 1:
            for operand in self.inputs:
                zero = (operand.constants == 0).expand(out.shape)
                value, known = value.masked_fill(zero, 0.0), known | zero
        out.set_constants(value, known)
        out.is_input = len(self.inputs) == 1 and self.inputs[0].is_input

    def constants_of_every_size(self, tensor: AbstractTensor) -> Tensor:
        """A constant times or over a size is a constant only where it is 0."""
        held = super().constants_of_every_size(tensor)
        return held | (tensor.constants == 0) if self._is_product() or self._is_quotient() else held

    def propagate_liveness(self) -> None:
        """Slices of operands and result stay together, except for an operand that is folded into a buffer."""
        (out,) = self.outputs
        folded = self._foldable_operand()
        for operand in self.inputs:
            if operand is folded:
                continue
            offset = len(out.shape) - len(operand.shape)
            aligned = [size == out.shape[offset + dim] for dim, size in enumerate(operand.shape)]
            operand.mark_live([mask if aligned[d] else _one() for d, mask in enumerate(out.live[offset:])])
            for dim, mask in enumerate(operand.live):
                if aligned[dim]:
                    out.mark_live_along(offset + dim, mask)

    def rewrite(self) -> None:
        """Replace an operand that is the same for every input by a buffer."""
        folded = self._foldable_operand()
        if folded is None:
            return
        (out,) = self.outputs
        value = _collapse_uniform(folded.constants)
        for dim, size in enumerate(value.shape):
            if size > 1:
                value = value.index_select(dim, out.live_indices(dim + len(out.shape) - value.ndim))
        name = f"{self.node.name}_constant"
        self.trace.module.register_buffer(name, value.to(folded.dtype))
        source = self._source_of(folded)
        with self.trace.graph.inserting_before(self.node):
            self.node.replace_input_with(source, self.trace.graph.get_attr(name))

    def _source_of(self, operand: AbstractTensor) -> fx.Node:
        return next(n for n in self.node.all_input_nodes if operand in abstract_tensors(self.trace.tensors.get(n)))

    def _is_product(self) -> bool:
        return call_name(self.node).strip("_") in ("mul", "imul", "multiply")

    def _is_quotient(self) -> bool:
        return call_name(self.node).strip("_") in ("truediv", "itruediv", "div", "divide") and (
            self.trace.tensor_of(self.node.args[0]) is not None
        )

    def _foldable_operand(self) -> AbstractTensor | None:
        """Return the one computed operand of two that is all constants and varies along one dimension at most."""
        (out,) = self.outputs
        if len(self.inputs) != 2:
            return None
        known = [bool(operand.known.all()) for operand in self.inputs]
        if sum(known) != 1:
            return None
        constant, other = self.inputs if known[0] else reversed(self.inputs)
        source = self._source_of(constant)
        overwritten = source is self.node.args[0] and is_in_place(self.trace.module, self.node)
        if source.op == "get_attr" or other.shapes != out.shapes or overwritten:
            return None
        collapsed = _collapse_uniform(constant.constants)
        return constant if sum(size > 1 for size in collapsed.shape) <= 1 else None


class Reduction(Op):
    """Pooling, mean, softmax, layer norm: each result depends on all elements of its operand along `dims`.

    Pooling and normalization keep these dimensions in the result; a reduction without `keepdim` drops them.
    """

    def __init__(self, trace: Trace, node: fx.Node, dims: Sequence[int]) -> None:
        super().__init__(trace, node)
        self.name = call_name(node)
        if node.op == "call_module":
            self.name = layer_type(trace.submodule(node)).__name__
        self.operand = self.inputs[0]
        self.dims = sorted(dim % len(self.operand.shape) for dim in dims)

    def propagate_constants(self) -> None:
        """A result is constant where the operand is all along `dims`."""
        (out,) = self.outputs
        value = self.trace.evaluate(self.node)
        known = self.operand.known.all() if not self.dims else self.operand.known
        for dim in self.dims:
            known = known.all(dim, keepdim=True)
        if len(out.shape) < len(self.operand.shape):
            known = known.squeeze(self.dims)
        out.set_constants(value, known.expand(out.shape))

    def constants_of_every_size(self, tensor: AbstractTensor) -> Tensor:
        """A mean or a maximum of equal values is that value in every size; zeros that are counted lower a mean."""
        if any(self.operand.is_dynamic(dim) for dim in self.dims) and self._counts_more_than_values():
            return tensor.constants == 0
        kind = self.name.lower().replace("adaptive", "").strip("_").rstrip("123d")
        return torch.full(tensor.shape, True) if kind in AVERAGES else super().constants_of_every_size(tensor)

    def _counts_more_than_values(self) -> bool:
        """Return whether an average pool counts padded zeros, or divides by a number of its own, near the border."""
        if not self.name.lower().startswith(("avgpool", "avg_pool")):
            return False
        node, module = self.node, self.trace.submodule(self.node) if self.node.op == "call_module" else None

        def setting(position: int, name: str, default: Any) -> Any:
            if module is not None:
                return getattr(module, name, default)
            return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)

        padding = leaves(setting(3, "padding", 0))
        counted = any(amount != 0 for amount in padding) and setting(5, "count_include_pad", True) is not False
        return counted or setting(6, "divisor_override", None) is not None

    def propagate_liveness(self) -> None:
        """`dims` stay whole; slices along the other dimensions stay together in operand and result."""
        (out,) = self.outputs
        positions = self._output_dims()
        whole = [torch.ones_like(mask) for mask in self.operand.live]
        self.operand.mark_live(
            [whole[d] if d in self.dims else out.live[positions[d]] for d in range(len(self.operand.shape))]
        )
        for dim, mask in enumerate(out.live):
            source = next((d for d, position in positions.items() if position == dim), None)
            out.mark_live_along(dim, torch.ones_like(mask) if source in self.dims else self.operand.live[source])  # type: ignore[index]
        for other in self.inputs[1:]:
            other.mark_all_live()

    def _output_dims(self) -> dict[int, int]:
        """Map each dimension of the operand that the result still has to its position there."""
        (out,) = self.outputs
        dims = range(len(self.operand.shape))
        if len(out.shape) == len(self.operand.shape):
            return {dim: dim for dim in dims}
        return {dim: position for position, dim in enumerate(dim for dim in dims if dim not in self.dims)}


def _one() -> Tensor:
    return torch.ones(1, dtype=torch.bool)


def _collapse_uniform(value: Tensor) -> Tensor:
    """Return a tensor with one slice along every dimension whose slices are all equal."""
    for dim, size in enumerate(value.shape):
        first = value.narrow(dim, 0, 1)
        if size > 1 and torch.equal(value, first.expand_as(value)):
            value = first
    return value
