"""Writes to tensors that other calls read."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from hyperflux.backends.torch.compact.nodes import call_name
from hyperflux.errors import InputError


def is_in_place(module: fx.GraphModule, node: fx.Node) -> bool:
    """Return whether a call writes to its first argument."""
    if node.op == "call_module":
        return bool(getattr(module.get_submodule(str(node.target)), "inplace", False))
    if node.op not in ("call_function", "call_method"):
        return False
    name = call_name(node)
    by_name = name in ("iadd", "isub", "imul", "itruediv") or (name.endswith("_") and not name.endswith("__"))
    return by_name or bool(node.kwargs.get("inplace", False))


def reject_aliased_writes(module: fx.GraphModule, results: dict[fx.Node, Any]) -> None:
    """Refuse a graph in which an in-place call changes a tensor that a later call reads through another node.

    Args:
        module: The traced module.
        results: The result of every node in one execution. Tensors that share memory are aliases.

    Raises:
        InputError: The graph has such a call. Rewriting it could change what the later call reads.
    """
    order = {node: number for number, node in enumerate(module.graph.nodes)}
    memory = {
        node: result.untyped_storage().data_ptr() for node, result in results.items() if isinstance(result, Tensor)
    }
    for node in module.graph.nodes:
        written = node.args[0] if node.args and is_in_place(module, node) else None
        if not isinstance(written, fx.Node) or written not in memory:
            continue
        for alias, address in memory.items():
            if address == memory[written] and order[alias] < order[node]:
                for user in alias.users:
                    if order[user] > order[node] and isinstance(results.get(user), Tensor | tuple | list):
                        raise InputError(
                            f"compact: {node.name} changes a tensor in place that {user.name} reads again; write it "
                            "without inplace=True"
                        )
