"""Trace a module into a graph of calls with torch.fx, and refuse what the graph would misrepresent."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from hyperflux.deploy.compact.unpacking import UnsupportedCallError, unpack_transformers
from hyperflux.errors import InputError


class _Tracer(fx.Tracer):
    """Traces `forward` as called with `inputs` positional arguments; the others keep their defaults."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self._inputs = inputs

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Return the function to trace, and the module and one placeholder per input as its arguments."""
        parameters = inspect.signature(root_fn).parameters.values()
        named = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD][1:]
        names = [*named, *(f"input_{number}" for number in range(len(named), self._inputs))][: self._inputs]
        return root_fn, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in names)]


def traced(model: nn.Module, inputs: int, unpack: bool = True) -> fx.GraphModule:
    """Trace a copy of a module, on the CPU and in evaluation mode.

    Args:
        model: The module; it stays as it is.
        inputs: Number of positional arguments that the graph takes.
        unpack: Whether to rewrite torch's packed transformer modules as ordinary layers first. Where the network calls
            them in an unsupported way (with a mask, say), they stay single calls.

    Returns:
        The graph module. It loads where this package is not installed.

    Raises:
        InputError: The module has hooks or a `forward` of its own, or torch.fx can't trace it.
    """
    if model._forward_hooks or model._forward_pre_hooks or "forward" in vars(model):
        raise InputError(
            "compact: the module has hooks or an overridden forward, which compaction would lose; remove them"
        )
    try:
        copied = copy.deepcopy(model).cpu().eval()
        if isinstance(copied, fx.GraphModule):
            return copied
        graph = _Tracer(inputs).trace(unpack_transformers(copied) if unpack else copied)
    except UnsupportedCallError:
        return traced(model, inputs, unpack=False)
    except Exception as error:  # the tracer runs the user's own code, which may raise anything
        if unpack:
            return traced(model, inputs, unpack=False)
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"compact: torch.fx can't trace this {type(model).__name__} ({reason}); its forward must not branch on the "
            "values of tensors"
        ) from error
    graph._tracer_cls = None  # otherwise a saved module would need this package to load
    return fx.GraphModule(copied, graph, type(model).__name__)


def call_name(node: fx.Node) -> str:
    """Return the name of the function or method that a node calls, such as `relu`."""
    return str(getattr(node.target, "__name__", node.target))


def is_getitem(node: fx.Node) -> bool:
    """Return whether a node indexes its first argument."""
    return node.op == "call_function" and call_name(node) == "getitem"


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
