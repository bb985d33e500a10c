"""Execute a traced graph node by node."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

Inputs = tuple[Tensor, ...]
CALL_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, AssertionError, AttributeError, NotImplementedError)
"""What a call raises on tensors that it does not take."""


def execute(module: fx.GraphModule, inputs: Inputs) -> dict[fx.Node, Any]:
    """Execute a traced module, in its own dtype.

    Returns:
        The result of every node; raises whatever its calls raise. Memory that calls share is shared in the results too.
    """
    results: dict[fx.Node, Any] = {}
    remaining = iter([x.cpu() for x in inputs])
    with torch.no_grad():
        for node in module.graph.nodes:
            results[node] = execute_node(module, node, results, remaining)
    return results


def execute_node(module: nn.Module, node: fx.Node, results: dict[fx.Node, Any], inputs: Iterator[Tensor]) -> Any:
    """Return a node's result from those of the nodes before it; an input is the next of `inputs`."""
    if node.op == "placeholder":
        value = next(inputs, node.args[0] if node.args else None)
        if value is None and not node.args:
            raise ValueError(f"it also takes {node.name}")
        return value
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        return getattr(module.get_submodule(owner), name)
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: results[source])
    return args[0] if node.op == "output" else invoke(module, node, args, kwargs)


def invoke(module: nn.Module, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """Make the call of a node with other arguments; raises whatever the call raises."""
    if node.op == "call_module":
        return module.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def to_float64(result: Any) -> Any:
    """Cast the floating-point tensors of a nested result to float64."""
    narrower = (torch.float16, torch.bfloat16, torch.float32)
    return tree_map(lambda leaf: leaf.double() if isinstance(leaf, Tensor) and leaf.dtype in narrower else leaf, result)


def shapes_only(results: dict[fx.Node, Any]) -> dict[fx.Node, Any]:
    """Return results without the values of their tensors, which take memory."""
    return tree_map(lambda leaf: leaf.to("meta") if isinstance(leaf, Tensor) else leaf, results)  # type: ignore[no-any-return]


def leaves(tree: Any) -> list[Any]:
    """Flatten nested tuples, lists and dictionaries; a torch.Size is a leaf."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, tuple | list) and not isinstance(tree, torch.Size):
        return [leaf for part in tree for leaf in leaves(part)]
    return [tree]


def tensors(result: Any) -> list[Tensor]:
    """Return the tensors of a nested result."""
    return [leaf for leaf in leaves(result) if isinstance(leaf, Tensor)]
