"""A traced network executed at several input sizes: abstract tensors, scalars, and single calls on chosen tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from hyperflux.backends.torch.compact.abstract_tensor import AbstractTensor
from hyperflux.backends.torch.compact.aliasing import reject_aliased_writes
from hyperflux.backends.torch.compact.execution import (
    Inputs,
    execute,
    invoke,
    leaves,
    shapes_only,
    tensors,
    to_float64,
)
from hyperflux.backends.torch.compact.nodes import call_name, is_getitem
from hyperflux.backends.torch.compact.size_dependence import Dependence, depends, size_dependence
from hyperflux.backends.torch.compact.sizes import Sizes, find_sizes, resize
from hyperflux.backends.torch.compact.tracing import traced

Scalars = Mapping[fx.Node, Any]
"""Results that are no tensors, such as the sizes that a graph computes, by node."""


class Trace:
    """A traced copy of a module in evaluation mode, with an `AbstractTensor` for every tensor that it computes.

    Constants are computed in float64, by a second copy.

    Attributes:
        module: The copy that is made smaller, in its own dtype.
        sizes: The inputs' shapes in every execution.
        unreadable: By path of a submodule that torch.fx can't read and that stays a single call, the reason.
        tensors: By node, its abstract tensors, nested as the node's result is.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, earlier: Trace | None = None) -> None:
        """Trace the module and execute it in several sizes.

        Args:
            model: The module, prepared; it stays as it is.
            inputs: An example of all its inputs.
            earlier: The trace that `model` comes from, if any. Its sizes are used again.

        Raises:
            InputError: The module can't be traced.
        """
        self.sizes: Sizes = earlier.sizes if earlier else find_sizes(model, inputs)
        self.unreadable: dict[str, str] = dict(earlier.unreadable) if earlier else {}
        self.module = traced(model, len(inputs), self.resized_examples(inputs), self.unreadable)
        example = execute(self.module, inputs)
        reject_aliased_writes(self.module, example)
        self._double = copy.deepcopy(self.module).double()
        runs = [shapes_only(execute(self.module, resized)) for resized in self.resized_examples(inputs)]
        self.tensors: dict[fx.Node, Any] = {}
        self._scalars: list[dict[fx.Node, Any]] = [{} for _ in runs]
        for node in self.graph.nodes:
            results = [run[node] for run in runs]
            if tensors(results[0]):
                self.tensors[node] = self._abstract(node, results, example[node])
            else:
                for scalars, result in zip(self._scalars, results, strict=True):
                    scalars[node] = result
        self._dependence: dict[fx.Node, Dependence] = size_dependence(self.graph, self.tensor_of, self._scalars[0])
        self.update_scalars()

    @property
    def graph(self) -> fx.Graph:
        """The graph of `module`."""
        return self.module.graph

    @property
    def calls(self) -> list[fx.Node]:
        """The nodes that give tensors, in execution order."""
        return [node for node in self.tensors if node.op != "output"]

    def reset(self) -> None:
        """Forget all constants, and make nothing live."""
        for node in self.calls:
            for tensor in abstract_tensors(self.tensors[node]):
                tensor.reset()
        self.update_scalars()

    def submodule(self, node: fx.Node) -> Any:
        """Return the module that a call_module node calls, in the network's own dtype."""
        return self.module.get_submodule(str(node.target))

    def double_submodule(self, node: fx.Node) -> Any:
        """Return the module that a call_module node calls, in float64."""
        return self._double.get_submodule(str(node.target))

    def tensor_of(self, node: Any) -> AbstractTensor | None:
        """Return the abstract tensor of a node that gives exactly one tensor, else None."""
        found = self.tensors.get(node) if isinstance(node, fx.Node) else None
        return found if isinstance(found, AbstractTensor) else None

    def operands(self, node: fx.Node) -> list[AbstractTensor]:
        """Return the abstract tensors that a node reads, each once."""
        read = (self.tensors.get(source) for source in node.all_input_nodes)
        return list(dict.fromkeys(tensor for tree in read for tensor in abstract_tensors(tree)))

    @property
    def executions(self) -> range:
        """The numbers of the executions."""
        return range(len(self.sizes))

    def depends_on_size(self, argument: Any) -> bool:
        """Return whether an argument of a call contains a scalar that depends on the size of the inputs."""
        return depends(argument, self._dependence)

    def resized_examples(self, inputs: Inputs) -> list[Inputs]:
        """Return the example in the sizes of all executions, in its own dtype."""
        return [resize(inputs, shapes) for shapes in self.sizes]

    def resolve(self, argument: Any) -> Any:
        """Return a call's argument with computed scalars filled in, as the original network computes them."""
        return fx.node.map_arg(argument, lambda node: self._scalars[0].get(node))

    def resolve_smaller(self, argument: Any) -> Any:
        """Return a call's argument with computed scalars filled in, as the smaller network will compute them."""
        return fx.node.map_arg(argument, lambda node: self._smaller_scalars[0].get(node))

    def changed_scalars(self, in_executions: bool = False) -> set[fx.Node]:
        """Return the nodes whose scalar will be different in the smaller network, in some size of input.

        What is computed from a changed scalar counts as changed, however equal it was in the executions, unless only
        those are asked for.
        """
        changed: set[fx.Node] = set()
        for node in self._scalars[0]:
            pairs = zip(self._scalars, self._smaller_scalars, strict=True)
            differs = any(before[node] != after[node] for before, after in pairs)
            computed = not (in_executions or is_getitem(node)) and not changed.isdisjoint(node.all_input_nodes)
            if differs or computed:
                changed.add(node)
        return changed

    def update_scalars(self) -> None:
        """Recompute what the graph will compute from the shapes of the live parts."""
        self._smaller_scalars = [self._recompute_scalars(execution) for execution in self.executions]

    def evaluate(self, node: fx.Node, execution: int = 0) -> Any:
        """Make a node's call in float64 on the known constants, 0 for unknown elements; raises what the call raises."""
        return self.call(node, node.args, node.kwargs, lambda tensor: tensor.with_zeros(execution), execution)

    def call(
        self,
        node: fx.Node,
        args: Any,
        kwargs: Any,
        values: Callable[[AbstractTensor], Tensor],
        execution: int,
        smaller: bool = False,
    ) -> Any:
        """Make a node's call with other arguments.

        Args:
            node: The node.
            args: Positional arguments; nodes in them are replaced by their values.
            kwargs: Keyword arguments, likewise.
            values: Gives the value of each abstract tensor.
            execution: The execution whose scalars are filled in.
            smaller: Whether these are the scalars of the smaller network.

        Returns:
            What the call returns, floating-point tensors in float64.
        """
        scalars = self._smaller_scalars if smaller else self._scalars
        return self._call(node, args, kwargs, values, scalars[execution])

    def _call(
        self, node: fx.Node, args: Any, kwargs: Any, values: Callable[[AbstractTensor], Tensor], scalars: Scalars
    ) -> Any:
        def value_of(source: fx.Node) -> Any:
            if source in scalars:
                return scalars[source]
            tree = self.tensors[source]
            return tree_map(lambda leaf: values(leaf).clone() if isinstance(leaf, AbstractTensor) else leaf, tree)

        args, kwargs = fx.node.map_arg(args, value_of), fx.node.map_arg(kwargs, value_of)
        with torch.no_grad():
            return to_float64(invoke(self._double, node, args, kwargs))

    def _recompute_scalars(self, execution: int) -> dict[fx.Node, Any]:
        def of_live_shape(tensor: AbstractTensor) -> Tensor:
            return torch.empty(tensor.live_shape(execution))

        before, after = self._scalars[execution], dict[fx.Node, Any]()
        for node, value in before.items():
            after[node] = value
            if node.op not in ("call_function", "call_method") or call_name(node) == "_assert":
                continue
            changed = any(after.get(source) != before.get(source) for source in node.all_input_nodes)
            if changed or any(tensor.shrinks() for tensor in self.operands(node)):
                after[node] = self._call(node, node.args, node.kwargs, of_live_shape, after)
        return after

    def _abstract(self, node: fx.Node, results: list[Any], example: Any) -> Any:
        """Return a result's abstract tensors; the output, and the pick of a tuple's part, share their sources'."""
        if node.op == "output":
            return fx.node.map_arg(node.args[0], lambda source: self.tensors.get(source))
        if is_getitem(node) and isinstance(self.tensors.get(node.args[0]), tuple | list):  # type: ignore[arg-type]
            return self.tensors[node.args[0]][node.args[1]]  # type: ignore[index]
        parts, examples = [tensors(result) for result in results], tensors(example)
        if len({*map(len, parts), len(examples)}) > 1:  # one part per sample: mark the rank as not fixed
            first = [tuple(part.shape) for part in parts[0]]
            others = max(1, len(parts) - 1)
            made = iter([AbstractTensor((shape, *[(*shape, 0)] * others), examples[0].dtype) for shape in first])
        else:
            shapes = zip(*([tuple(part.shape) for part in run] for run in parts), strict=True)
            made = iter([AbstractTensor(own, part.dtype) for own, part in zip(shapes, examples, strict=True)])
        return tree_map(lambda leaf: next(made) if isinstance(leaf, Tensor) else leaf, results[0])


def abstract_tensors(tree: Any) -> list[AbstractTensor]:
    """Return the abstract tensors of a nested result."""
    return [leaf for leaf in leaves(tree) if isinstance(leaf, AbstractTensor)]
