"""The network as a graph of calls, and the means to run a single one of them on tensors of our choice."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from hyperflux.deploy.compact.slots import Slot
from hyperflux.deploy.compact.transformers import NotPlainError, plainly
from hyperflux.errors import InputError

Inputs = tuple[Tensor, ...]


class Trace:
    """A traced copy of a module in evaluation mode, with a `Slot` for every tensor that it computes for one sample.

    `module` is the copy to be made smaller, in its own dtype. Constants are computed in float64, by a second copy.
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        """Trace and run once. Raises InputError for a module that can't be traced or can't take the inputs."""
        self.module = _traced(model, len(inputs))
        self._double = copy.deepcopy(self.module).double()
        _require_no_hidden_change(self.module)
        self.scalars: dict[fx.Node, Any] = {}
        self.slots: dict[fx.Node, Any] = {}
        self._run(inputs)

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

    def submodule(self, node: fx.Node) -> Any:
        """What a call_module node calls, in the network's own dtype."""
        return self.module.get_submodule(str(node.target))

    def double(self, node: fx.Node) -> Any:
        """The same in float64."""
        return self._double.get_submodule(str(node.target))

    def slot(self, node: fx.Node) -> Slot | None:
        """The slot of a node that gives one tensor."""
        found = self.slots.get(node)
        return found if isinstance(found, Slot) else None

    def inputs(self, node: fx.Node) -> list[Slot]:
        """The slots that a node reads, each once."""
        found = {id(slot): slot for source in node.all_input_nodes for slot in slots_in(self.slots.get(source))}
        return list(found.values())

    def run(self, node: fx.Node, tensor: Callable[[Slot], Tensor]) -> Any:
        """The result of a node's call on `tensor(slot)` in the place of each tensor, in float64.

        Raises what the call raises.
        """
        return self.call(node, node.args, node.kwargs, tensor)

    def call(
        self,
        node: fx.Node,
        args: Any,
        kwargs: Any,
        tensor: Callable[[Slot], Tensor],
        scalars: Mapping[fx.Node, Any] | None = None,
    ) -> Any:
        """The same with other arguments, and other numbers that the graph computes."""
        numbers = self.scalars if scalars is None else scalars

        def filled(source: fx.Node) -> Any:
            if source in numbers:
                return numbers[source]
            return tree_map(lambda leaf: tensor(leaf).clone() if isinstance(leaf, Slot) else leaf, self.slots[source])

        args, kwargs = fx.node.map_arg(args, filled), fx.node.map_arg(kwargs, filled)
        with torch.no_grad():
            if node.op == "call_module":
                return self.double(node)(*args, **kwargs)
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            return node.target(*args, **kwargs)  # type: ignore[operator]

    @property
    def scalars_now(self) -> dict[fx.Node, Any]:
        """The numbers that the graph will compute from the shapes of the smaller tensors."""
        found: dict[fx.Node, Any] = {}
        for node, value in self.scalars.items():
            read = node.op in ("call_function", "call_method") and self.inputs(node)
            depends = any(source in found and found[source] != self.scalars[source] for source in node.all_input_nodes)
            found[node] = value
            if (read and any(slot.is_cut() for slot in self.inputs(node))) or depends:
                found[node] = self.call(node, node.args, node.kwargs, _shaped, found)
        return found

    def _run(self, inputs: Inputs) -> None:
        """Give every node its slots or, where it computes no tensor, its value."""
        seen: dict[fx.Node, Any] = {}
        given = iter([x[:1].double() if x.is_floating_point() else x[:1] for x in inputs])
        try:
            with torch.no_grad():
                for node in self.graph.nodes:
                    seen[node] = self._result(node, seen, given)
                    if any(isinstance(leaf, Tensor) for leaf in leaves(seen[node])):
                        self.slots[node] = self._slots(node, seen[node])
                    else:
                        self.scalars[node] = seen[node]
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"compact: the module can't take the example input ({reason})") from error

    def _result(self, node: fx.Node, seen: dict[fx.Node, Any], given: Iterator[Tensor]) -> Any:
        if node.op == "placeholder":
            return next(given)
        if node.op == "get_attr":
            return _attribute(self._double, str(node.target))
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: seen[source])
        if node.op == "output":
            return args[0]
        if node.op == "call_module":
            return self.double(node)(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _slots(self, node: fx.Node, result: Any) -> Any:
        """Slots of a result; what picks a part of a tuple, and the output, share those of their sources."""
        if node.op == "output":
            return fx.node.map_arg(node.args[0], lambda source: self.slots.get(source))
        if picks(node) and isinstance(self.slots.get(node.args[0]), tuple | list):  # type: ignore[arg-type]
            return self.slots[node.args[0]][node.args[1]]  # type: ignore[index]
        return tree_map(lambda leaf: Slot.like(leaf) if isinstance(leaf, Tensor) else leaf, result)


def called(node: fx.Node) -> str:
    """The name of the function or method that a node calls."""
    return str(getattr(node.target, "__name__", node.target))


def picks(node: fx.Node) -> bool:
    """Whether a node is an indexing."""
    return node.op == "call_function" and getattr(node.target, "__name__", "") == "getitem"


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


def _shaped(slot: Slot) -> Tensor:
    """A tensor of the shape that a slot will have."""
    return torch.empty([slot.count(dim) for dim in range(len(slot.shape))] if slot.needed else slot.shape)


class _Tracer(fx.Tracer):
    """Traces `forward` as it is called with so many inputs: its other arguments have their defaults."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self._inputs = inputs

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """The module and a placeholder for each input."""
        named = [p.name for p in inspect.signature(root_fn).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD][
            1:
        ]
        names = [*named, *(f"input_{number}" for number in range(len(named), self._inputs))][: self._inputs]
        return root_fn, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in names)]


def _traced(model: nn.Module, inputs: int) -> fx.GraphModule:
    copied = copy.deepcopy(model).cpu().eval()
    if isinstance(copied, fx.GraphModule):
        return copied
    try:
        try:
            copied = plainly(copied)
            graph = _Tracer(inputs).trace(copied)
        except NotPlainError:
            copied = copy.deepcopy(model).cpu().eval()
            graph = _Tracer(inputs).trace(copied)
    except Exception as error:  # the tracer runs the user's own code, which may raise anything
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"compact: torch.fx can't trace this {type(model).__name__} ({reason}); its forward may not branch on the "
            "values of tensors"
        ) from error
    graph._tracer_cls = None  # or a saved module could be loaded only where this package is
    return fx.GraphModule(copied, graph, type(model).__name__)


def _require_no_hidden_change(module: fx.GraphModule) -> None:
    """Raise InputError where a call changes a tensor in place that a later call reads under its old name."""
    place = {node: number for number, node in enumerate(module.graph.nodes)}
    for node in module.graph.nodes:
        if node.args and isinstance(node.args[0], fx.Node) and _in_place(module, node):
            again = [user for user in node.args[0].users if place[user] > place[node]]
            if again:
                raise InputError(
                    f"compact: {node.name} changes a tensor in place that {again[0].name} reads again; write it "
                    "without inplace=True"
                )


def _in_place(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return bool(getattr(module.get_submodule(str(node.target)), "inplace", False))
    name = called(node)
    by_name = name in ("iadd", "isub", "imul", "itruediv") or (name.endswith("_") and not name.endswith("__"))
    return by_name or bool(node.kwargs.get("inplace", False))


def _attribute(module: nn.Module, target: str) -> Any:
    owner, _, name = target.rpartition(".")
    return getattr(module.get_submodule(owner), name)
