"""The graph run twice, on inputs of two sizes: shapes, numbers, and single calls on tensors of our choice."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from hyperflux.deploy.compact.slots import Slot
from hyperflux.deploy.compact.tracing import called, picks, require_no_hidden_change, traced
from hyperflux.errors import InputError

Inputs = tuple[Tensor, ...]
Shapes = tuple[tuple[int, ...], ...]
Sizes = tuple[Shapes, Shapes]
Numbers = Mapping[fx.Node, Any]

LARGER = 32
"""Pixels or tokens by which a second run's inputs are larger, where that is taken: a multiple of most strides."""
FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AssertionError, AttributeError, NotImplementedError)
"""What a call raises that was given tensors it does not take."""


class Trace:
    """A traced copy of a module in evaluation mode, with a `Slot` for every tensor that it computes.

    `module` is the copy to be made smaller, in its own dtype. Constants are computed in float64, by a second copy.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, sizes: Sizes | None = None) -> None:
        """Trace and run, with inputs of known `sizes` if given.

        Raises InputError for a module that can't be traced or can't take the inputs.
        """
        self.module = traced(model, len(inputs))
        own = self._first_run(self.module, inputs)
        require_no_hidden_change(self.module, own)
        self._double = copy.deepcopy(self.module).double()
        self.sizes = sizes or self._tried_sizes(inputs)
        results = [self._results(self._double, _of_shapes(inputs, shapes)) for shapes in self.sizes]
        self.slots: dict[fx.Node, Any] = {}
        self._numbers: tuple[dict[fx.Node, Any], dict[fx.Node, Any]] = ({}, {})
        for node in self.graph.nodes:
            here, there = (result[node] for result in results)
            if any(isinstance(leaf, Tensor) for leaf in leaves(here)):
                self.slots[node] = self._slots(node, here, there, own[node])
            else:
                self._numbers[0][node], self._numbers[1][node] = here, there
        self.count_again()

    @property
    def graph(self) -> fx.Graph:
        """The graph of `module`."""
        return self.module.graph

    @property
    def calls(self) -> list[fx.Node]:
        """The nodes that give tensors, in the order in which they run."""
        return [node for node in self.slots if node.op != "output"]

    def forget(self) -> None:
        """Start anew: nothing is known, and nothing kept."""
        for node in self.calls:
            for slot in slots_in(self.slots[node]):
                slot.forget()
        self.count_again()

    def submodule(self, node: fx.Node) -> Any:
        """What a call_module node calls, in the network's own dtype."""
        return self.module.get_submodule(str(node.target))

    def double(self, node: fx.Node) -> Any:
        """The same in float64."""
        return self._double.get_submodule(str(node.target))

    def slot(self, node: Any) -> Slot | None:
        """The slot of a node that gives one tensor."""
        found = self.slots.get(node) if isinstance(node, fx.Node) else None
        return found if isinstance(found, Slot) else None

    def inputs(self, node: fx.Node) -> list[Slot]:
        """The slots that a node reads, each once."""
        found = {id(slot): slot for source in node.all_input_nodes for slot in slots_in(self.slots.get(source))}
        return list(found.values())

    def number(self, argument: Any) -> Any:
        """An argument of a call, with the numbers that the graph computes in it."""
        return fx.node.map_arg(argument, lambda node: self._numbers[0].get(node))

    def number_now(self, argument: Any, run: int = 0) -> Any:
        """The same as the smaller network will compute them."""
        return fx.node.map_arg(argument, lambda node: self._numbers_now[run].get(node))

    def changed_numbers(self) -> set[fx.Node]:
        """Nodes whose number will be another one in the smaller network."""
        return {
            node
            for run in (0, 1)
            for node, value in self._numbers[run].items()
            if self._numbers_now[run][node] != value
        }

    def run(self, node: fx.Node, run: int = 0) -> Any:
        """The result of a node's call on the constants that are known, in float64. Raises what the call raises."""
        return self.call(node, node.args, node.kwargs, lambda slot: slot.filled(run), self._numbers[run])

    def call(self, node: fx.Node, args: Any, kwargs: Any, tensor: Callable[[Slot], Tensor], numbers: Numbers) -> Any:
        """The same on `tensor(slot)` in the place of each tensor, with other arguments and numbers."""

        def filled(source: fx.Node) -> Any:
            if source in numbers:
                return numbers[source]
            return tree_map(lambda leaf: tensor(leaf).clone() if isinstance(leaf, Slot) else leaf, self.slots[source])

        args, kwargs = fx.node.map_arg(args, filled), fx.node.map_arg(kwargs, filled)
        with torch.no_grad():
            return _doubled(_called(self._double, node, args, kwargs))

    def numbered(
        self, node: fx.Node, args: Any, kwargs: Any, tensor: Callable[[Slot], Tensor], run: int, now: bool
    ) -> Any:
        """A call as `call` makes it, with the numbers of a run, those of the smaller network if `now`."""
        return self.call(node, args, kwargs, tensor, (self._numbers_now if now else self._numbers)[run])

    def count_again(self) -> None:
        """Compute anew what the graph will compute from the shapes of the smaller tensors."""
        self._numbers_now = tuple(self._count(run) for run in (0, 1))

    def _count(self, run: int) -> dict[fx.Node, Any]:
        found: dict[fx.Node, Any] = {}
        for node, value in self._numbers[run].items():
            found[node] = value
            if node.op not in ("call_function", "call_method") or called(node) == "_assert":
                continue
            read = self.inputs(node)
            changed = any(found.get(source) != self._numbers[run].get(source) for source in node.all_input_nodes)
            if changed or any(slot.is_cut() for slot in read):
                found[node] = self.call(
                    node, node.args, node.kwargs, lambda s: torch.empty(s.smaller_shape(run)), found
                )
        return found

    def _first_run(self, module: fx.GraphModule, inputs: Inputs) -> dict[fx.Node, Any]:
        """A run of the example as it is. Raises InputError where the module does not take it."""
        if not all(isinstance(x, Tensor) and x.numel() for x in inputs):
            raise InputError("compact: example_input has to be a tensor, or a tuple of tensors, none of them empty")
        try:
            return self._results(module, inputs, double=False)
        except FAILURES as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"compact: the module can't take the example input ({reason})") from error

    def _results(self, module: fx.GraphModule, inputs: Inputs, double: bool = True) -> dict[fx.Node, Any]:
        """What every node gives; memory that calls share is shared here too."""
        seen: dict[fx.Node, Any] = {}
        given = iter([_doubled(x) if double else x.cpu() for x in inputs])
        with torch.no_grad():
            for node in self.module.graph.nodes:
                seen[node] = _result(module, node, seen, given)
                if double:
                    seen[node] = _doubled(seen[node])
        return seen

    def own_inputs(self, inputs: Inputs) -> list[Inputs]:
        """The example in the sizes of both runs, in its own dtype."""
        return [_of_shapes(inputs, shapes) for shapes in self.sizes]

    def _tried_sizes(self, inputs: Inputs) -> Sizes:
        """Shapes for both runs: larger in the second along every dimension in which the network takes any size."""
        own = tuple(tuple(x.shape) for x in inputs)
        first = tuple((2, *shape[1:]) if shape else shape for shape in own)
        if not self._takes(inputs, first):
            first = own
        second = first
        for dim in range(max(map(len, first), default=0)):
            larger = tuple(_grown(shape, dim) for shape in second)
            if larger != second and self._takes(inputs, larger):
                second = larger
        return first, second

    def _takes(self, inputs: Inputs, shapes: Shapes) -> bool:
        try:
            self._results(self._double, _of_shapes(inputs, shapes))
        except FAILURES:
            return False
        return True

    def _slots(self, node: fx.Node, here: Any, there: Any, own: Any) -> Any:
        """Slots of a result; what picks a part of a tuple, and the output, share those of their sources."""
        if node.op == "output":
            return fx.node.map_arg(node.args[0], lambda source: self.slots.get(source))
        if picks(node) and isinstance(self.slots.get(node.args[0]), tuple | list):  # type: ignore[arg-type]
            return self.slots[node.args[0]][node.args[1]]  # type: ignore[index]
        first, second, third = ([leaf for leaf in leaves(r) if isinstance(leaf, Tensor)] for r in (here, there, own))
        shapes: list[tuple[int, ...]] = [tuple(tensor.shape) for tensor in second]
        if not len(first) == len(second) == len(third):  # as many parts as samples: none of them is a regular slot
            third, shapes = third[:1] * len(first), [(*tensor.shape, 0) for tensor in first]
        made = iter([Slot((tuple(a.shape), b), c.dtype) for a, b, c in zip(first, shapes, third, strict=True)])
        return tree_map(lambda leaf: next(made) if isinstance(leaf, Tensor) else leaf, here)


def _called(module: fx.GraphModule, node: fx.Node, args: Any, kwargs: Any) -> Any:
    if node.op == "call_module":
        return module.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _result(module: fx.GraphModule, node: fx.Node, seen: dict[fx.Node, Any], given: Iterator[Tensor]) -> Any:
    if node.op == "placeholder":
        value = next(given, node.args[0] if node.args else None)
        if value is None and not node.args:
            raise ValueError(f"it also wants {node.name}")
        return value
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        return getattr(module.get_submodule(owner), name)
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: seen[source])
    return args[0] if node.op == "output" else _called(module, node, args, kwargs)


def _doubled(result: Any) -> Any:
    """Floating point numbers as float64, wherever the graph casts them."""
    wide = (torch.float16, torch.bfloat16, torch.float32)
    return tree_map(lambda leaf: leaf.double() if isinstance(leaf, Tensor) and leaf.dtype in wide else leaf, result)


def _grown(shape: tuple[int, ...], dim: int) -> tuple[int, ...]:
    """The shape with one more sample, or with more places along a later dimension of three or more."""
    if dim >= len(shape) or (dim > 0 and len(shape) < 3):
        return shape
    return (*shape[:dim], shape[dim] + (LARGER if dim else 1), *shape[dim + 1 :])


def _of_shapes(inputs: Inputs, shapes: Shapes) -> Inputs:
    """The tensors with other numbers of slices: their first ones, and then from the first again."""
    result = []
    for x, shape in zip(inputs, shapes, strict=True):
        x = x.cpu()
        for dim, size in enumerate(shape):
            x = x.index_select(dim, torch.arange(size) % x.shape[dim])
        result.append(x)
    return tuple(result)


def slots_in(tree: Any) -> list[Slot]:
    """The slots of a result."""
    return [leaf for leaf in leaves(tree) if isinstance(leaf, Slot)]


def leaves(tree: Any) -> list[Any]:
    """What stands in nested tuples, lists and dictionaries."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, tuple | list) and not isinstance(tree, torch.Size):
        return [leaf for part in tree for leaf in leaves(part)]
    return [tree]
