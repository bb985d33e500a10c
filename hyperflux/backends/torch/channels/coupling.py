"""Finds which channels of a traced network can only go together, by following labels from layer to layer.

Every output channel of a layer gets a label, and every element of a tensor carries the label of the channel that it
belongs to. A call that mixes or adds elements makes their labels one. What no gate may close, because something reads
it that can't be cut, gets the label `PINNED`.

A linear layer or convolution ends the journey: it reads channels by the columns of its weight, and makes new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from hyperflux.backends.torch.compact.abstract_tensor import AbstractTensor
from hyperflux.backends.torch.compact.analysis import analyze
from hyperflux.backends.torch.compact.attention import Attention, MatrixProduct
from hyperflux.backends.torch.compact.batch_norm import BatchNorm, FunctionalBatchNorm
from hyperflux.backends.torch.compact.data_movement import DataMovement
from hyperflux.backends.torch.compact.layers import GroupedConvolution, LinearOrConvolution
from hyperflux.backends.torch.compact.ops import Elementwise, Op, Reduction, Source
from hyperflux.backends.torch.compact.trace import Trace

Labels = NDArray[np.int64]
"""Labels of a tensor's elements, of its shape; dimensions along which they are equal have stride 0."""

PINNED = 0
"""The label of what always stays."""
INPUT = "input"
"""What makes the features of the only input; of several inputs each has its name behind it."""


class Coupling:
    """The labels of every tensor in a trace.

    Attributes:
        ops: The rules of all calls, in the order of the graph.
        count: Number of labels.
    """

    def __init__(self, trace: Trace, gate_inputs: bool) -> None:
        """Follow the labels through a traced network.

        Args:
            trace: The network.
            gate_inputs: Whether the network's input features may be closed.
        """
        self.ops: list[Op] = analyze(trace)
        self._makers: list[tuple[str, Labels]] = []
        self._gate_inputs, self._inputs = gate_inputs, list[Labels]()
        self._several = sum(node.op == "placeholder" for node in trace.graph.nodes) > 1
        self._labels: dict[AbstractTensor, Labels] = {}
        self.count = 1
        self._pairs: list[Labels] = []
        self._whole: list[tuple[Labels, list[int]]] = []
        for op in self.ops:
            self._follow(op)
        for node in trace.graph.nodes:
            if node.op == "output":
                for tensor in trace.operands(node):
                    self._pin(self._of(tensor))
        self._pin_inputs()
        self._roots = self._settled()

    def of(self, tensor: AbstractTensor) -> Labels:
        """Settled labels of a tensor's elements: equal where they can only go together, `PINNED` where they stay."""
        return self._roots[self._of(tensor)]

    def along(self, tensor: AbstractTensor, dim: int) -> Labels:
        """Settled labels of a tensor's channels, which lie along a dimension, (channels,)."""
        others = [d for d in range(len(tensor.shape)) if d != dim % len(tensor.shape)]
        return self._roots[_first(self._of(tensor), others)]

    def _pin_inputs(self) -> None:
        """Keep the input features but those that only linear layers read, as nothing else selects what it reads."""
        if not self._inputs:
            return
        for op in self.ops:
            if isinstance(op, LinearOrConvolution) and op.input.is_input and not op.selects_inputs:
                self._pin(self._of(op.input))
        for tensor, labels in self._labels.items():
            passed_on = np.intersect1d(_compact(labels), np.concatenate(self._inputs))
            if len(passed_on) and not tensor.is_input:
                self._pin(passed_on)

    def makers(self) -> list[tuple[str, Labels]]:
        """Every layer with the settled labels of the channels that it makes, then parameters of the graph likewise."""
        parameters = {str(op.node.target) for op in self.ops if isinstance(op, Source)}
        made = sorted(self._makers, key=lambda maker: maker[0] in parameters)
        return [(name, self._roots[new]) for name, new in made]

    def _follow(self, op: Op) -> None:
        """Give labels to the results of a call."""
        rules: list[tuple[type[Op] | tuple[type[Op], ...], Callable[[Any], None]]] = [
            (Source, self._follow_source),
            (Elementwise, self._follow_elementwise),
            (Reduction, self._follow_reduction),
            ((BatchNorm, FunctionalBatchNorm), self._follow_norm),
            (DataMovement, self._follow_movement),
            ((Attention, MatrixProduct), self._follow_product),
            (LinearOrConvolution, self._follow_layer),
            (GroupedConvolution, self._follow_groups),
        ]
        follow = next((follow for kinds, follow in rules if isinstance(op, kinds)), None)
        if follow is not None:
            follow(op)
        elif type(op) is not Op:  # that one picks a part of a tuple: its tensors are known
            self._keep(op)

    def _keep(self, op: Op) -> None:
        """A call that can't be cut: all that it reads and gives stays."""
        for tensor in (*op.inputs, *op.outputs):
            if tensor in self._labels:
                self._pin(self._labels[tensor])
            else:
                self._labels[tensor] = _spread(np.int64(PINNED), tensor.shape)

    def _follow_source(self, op: Source) -> None:
        (tensor,) = op.outputs
        is_input = op.node.op == "placeholder"
        if op.is_shared() if not is_input else not self._gate_inputs:
            self._labels[tensor] = _spread(np.int64(PINNED), tensor.shape)
            return
        shape = tensor.shape[1:] if is_input else tensor.shape
        name = str(op.node.target)
        if is_input:
            name = f"{INPUT} {name}" if self._several else INPUT
        new = self._new(int(np.prod(shape)), name)
        if is_input:
            self._inputs.append(new)
        self._labels[tensor] = np.broadcast_to(new.reshape(shape), tensor.shape)

    def _follow_elementwise(self, op: Elementwise) -> None:
        """Elements that are combined go together; an element that is combined with several channels stays."""
        (out,) = op.outputs
        whole = next((tensor for tensor in op.inputs if tensor.shape == out.shape), None)
        if whole is None:
            self._keep(op)
            return
        labels = self._of(whole)
        for other in op.inputs:
            shape = (1,) * (len(out.shape) - len(other.shape)) + other.shape
            repeated = [d for d, size in enumerate(shape) if size != out.shape[d]]
            if set(repeated) & set(_varying(labels)):
                self._pin(self._of(other))
            else:
                self._join(labels, np.broadcast_to(self._of(other), out.shape))
        self._labels[out] = labels

    def _follow_reduction(self, op: Reduction) -> None:
        """What is reduced or normalised together goes together."""
        (out,) = op.outputs
        labels = self._of(op.operand)
        self._join(np.broadcast_to(_first(labels, op.dims, keep=True), labels.shape), labels)
        for other in op.inputs[1:]:
            self._pin(self._of(other))
        first = _first(labels, op.dims, keep=len(out.shape) == labels.ndim)
        self._labels[out] = np.broadcast_to(first, out.shape)

    def _follow_norm(self, op: BatchNorm | FunctionalBatchNorm) -> None:
        labels = self._of(op.input)
        for vector in op.inputs:
            if vector is not op.input:
                self._join(self._of(vector), _first(labels, [d for d in range(labels.ndim) if d != 1]))
        self._labels[op.output] = labels

    def _follow_movement(self, op: DataMovement) -> None:
        """Labels move with their elements; constants that a call adds go with whatever they meet."""
        flat = np.concatenate([np.ravel(self._of(tensor)) for tensor in op.operands])
        for tensor in op.operands:
            self._whole.append((self._of(tensor), op.moved_dims))
        for other in op.inputs:
            if other not in op.operands:
                self._pin(self._of(other))
        for out, source in zip(op.outputs, op.source_indices[0], strict=True):
            indices = source.numpy()
            labels = flat[indices]
            if added := int((indices < 0).sum()):
                labels[indices < 0] = self._new(added)
            self._labels[out] = _tightened(labels)

    def _follow_product(self, op: Attention | MatrixProduct) -> None:
        """Whole matrices, heads of attention, go together, in all factors and the result."""
        shape = op.output.shape
        if any(tensor.shape[:-2] != shape[:-2] for tensor in op.inputs):
            self._keep(op)
            return
        new = self._new(int(np.prod(shape[:-2]))).reshape(*shape[:-2], 1, 1)
        for tensor in op.inputs:
            self._join(np.broadcast_to(new, tensor.shape), self._of(tensor))
        self._labels[op.output] = np.broadcast_to(new, shape)

    def _follow_layer(self, op: LinearOrConvolution) -> None:
        """A layer reads whole channels and makes new ones."""
        self._join_slices(op.input, op.dim)
        self._labels[op.output] = self._new_channels(op.output, op.dim, op.name)

    def _follow_groups(self, op: GroupedConvolution) -> None:
        """A group goes whole, with its inputs; of a depthwise convolution that is a channel."""
        self._join_slices(op.input, 1)
        read = _first(self._of(op.input), [d for d in range(len(op.input.shape)) if d != 1]).reshape(op.groups, -1)
        self._join(np.broadcast_to(read[:, :1], read.shape), read)
        made = np.repeat(read[:, 0], op.output.shape[1] // op.groups)
        self._labels[op.output] = _spread(made, op.output.shape, 1)

    def _of(self, tensor: AbstractTensor) -> Labels:
        return self._labels[tensor]

    def _new(self, count: int, name: str | None = None) -> Labels:
        """New labels; with a name, of the channels that a layer makes."""
        first, self.count = self.count, self.count + count
        new = np.arange(first, self.count, dtype=np.int64)
        if name is not None:
            self._makers.append((name, new))
        return new

    def _new_channels(self, tensor: AbstractTensor, dim: int, name: str) -> Labels:
        return _spread(self._new(tensor.shape[dim], name), tensor.shape, dim % len(tensor.shape))

    def _join(self, one: Labels, other: Labels) -> None:
        """Make labels one, element by element; both have one shape."""
        shared = [d for d in range(one.ndim) if one.strides[d] == 0 and other.strides[d] == 0]
        pairs = np.stack([np.ravel(_first(one, shared)), np.ravel(_first(other, shared))])
        self._pairs.append(np.unique(pairs[:, pairs[0] != pairs[1]], axis=1))

    def _join_slices(self, tensor: AbstractTensor, dim: int) -> None:
        """Make the labels of each slice along a dimension one."""
        labels = self._of(tensor)
        others = [d for d in range(labels.ndim) if d != dim % labels.ndim]
        self._join(np.broadcast_to(_first(labels, others, keep=True), labels.shape), labels)

    def _pin(self, labels: Labels) -> None:
        self._join(_spread(np.int64(PINNED), labels.shape), labels)

    def _settled(self) -> Labels:
        """The least label that each label is joined with, after pinning what can't be cut as a product of slices.

        The network's input is never cut: a layer selects what it reads of it.
        """
        tensors = [labels for tensor, labels in self._labels.items() if labels.ndim and not tensor.is_input]
        while True:
            roots = _components(self.count, self._pairs)
            pinned = len(self._pairs)
            for labels, dims in self._whole:
                own = roots[_compact(labels)]
                for dim in dims:
                    if (own != _first(own, [dim], keep=True)).any():
                        self._pin(labels)
            for labels in tensors:
                if len(_varying(roots[_compact(labels)])) > 1:
                    self._pin(labels)
            if not any(pairs.size and (roots[pairs[0]] != roots[pairs[1]]).any() for pairs in self._pairs[pinned:]):
                return roots


def _components(count: int, pairs: Sequence[Labels]) -> Labels:
    """The least label of each label's component."""
    one, other = np.concatenate([np.zeros((2, 0), np.int64), *pairs], axis=1)
    graph = coo_array((np.ones(len(one), bool), (one, other)), (count, count))
    _, component = connected_components(graph, directed=False)
    _, least = np.unique(component, return_index=True)
    roots: Labels = least[component]
    return roots


def _first(labels: Labels, dims: Sequence[int], keep: bool = False) -> Labels:
    """The first slice along each of some dimensions, which are dropped unless they are kept."""
    index = tuple((slice(0, 1) if keep else 0) if dim in dims else slice(None) for dim in range(labels.ndim))
    first: Labels = labels[index]
    return first


def _spread(channels: Any, shape: Sequence[int], dim: int | None = None) -> Labels:
    """Labels of channels along a dimension of a tensor, or one label of all."""
    if dim is not None:
        channels = channels.reshape([-1 if d == dim else 1 for d in range(len(shape))])
    return np.broadcast_to(channels, tuple(shape))


def _compact(labels: Labels) -> Labels:
    """The labels with one slice along the dimensions of stride 0."""
    return _first(labels, [d for d in range(labels.ndim) if labels.strides[d] == 0], keep=True)


def _varying(labels: Labels) -> list[int]:
    """The dimensions along which labels differ."""
    return [d for d in range(labels.ndim) if (labels != _first(labels, [d], keep=True)).any()]


def _tightened(labels: Labels) -> Labels:
    """The same labels with stride 0 along the dimensions along which they are equal."""
    same = [d for d in range(labels.ndim) if d not in _varying(labels)]
    return np.broadcast_to(_first(labels, same, keep=True), labels.shape)
