"""A module as a graph of calls, by torch.fx; what can't be read that way is refused."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from hyperflux.deploy.compact.transformers import NotPlainError, plainly
from hyperflux.errors import InputError


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


def traced(model: nn.Module, inputs: int, plain: bool = True) -> fx.GraphModule:
    """A traced copy, on the CPU and in evaluation mode, for calls with so many inputs.

    With `plain`, torch's own transformer modules are traced into. Raises InputError where torch.fx can't.
    """
    if model._forward_hooks or model._forward_pre_hooks or "forward" in vars(model):
        raise InputError(
            "compact: the module itself has hooks or a forward of its own, which would be lost; remove them"
        )
    try:
        copied = copy.deepcopy(model).cpu().eval()
        if isinstance(copied, fx.GraphModule):
            return copied
        graph = _Tracer(inputs).trace(plainly(copied) if plain else copied)
    except NotPlainError:
        return traced(model, inputs, plain=False)
    except Exception as error:  # the tracer runs the user's own code, which may raise anything
        if plain:
            return traced(model, inputs, plain=False)
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"compact: torch.fx can't trace this {type(model).__name__} ({reason}); its forward may not branch on the "
            "values of tensors"
        ) from error
    graph._tracer_cls = None  # or a saved module could be loaded only where this package is
    return fx.GraphModule(copied, graph, type(model).__name__)


def called(node: fx.Node) -> str:
    """The name of the function or method that a node calls."""
    return str(getattr(node.target, "__name__", node.target))


def picks(node: fx.Node) -> bool:
    """Whether a node is an indexing."""
    return node.op == "call_function" and called(node) == "getitem"


def works_in_place(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a call changes its first argument."""
    if node.op == "call_module":
        return bool(getattr(module.get_submodule(str(node.target)), "inplace", False))
    if node.op not in ("call_function", "call_method"):
        return False
    name = called(node)
    by_name = name in ("iadd", "isub", "imul", "itruediv") or (name.endswith("_") and not name.endswith("__"))
    return by_name or bool(node.kwargs.get("inplace", False))


def require_no_hidden_change(module: fx.GraphModule, results: dict[fx.Node, Any]) -> None:
    """Raise InputError where a call changes a tensor in place that a later call reads under another name.

    `results` are those of a run; tensors that share memory are one tensor under several names.
    """
    order = {node: number for number, node in enumerate(module.graph.nodes)}
    memory = {
        node: result.untyped_storage().data_ptr() for node, result in results.items() if isinstance(result, Tensor)
    }
    for node in module.graph.nodes:
        changed = node.args[0] if node.args and works_in_place(module, node) else None
        if not isinstance(changed, fx.Node) or changed not in memory:
            continue
        for other, place in memory.items():
            if place == memory[changed] and order[other] < order[node]:
                for user in other.users:
                    if order[user] > order[node] and isinstance(results.get(user), Tensor | tuple | list):
                        raise InputError(
                            f"compact: {node.name} changes a tensor in place that {user.name} reads again; write it "
                            "without inplace=True"
                        )
