"""Which scalars of a graph depend on the size of the inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import fx

from hyperflux.backends.torch.compact.abstract_tensor import AbstractTensor
from hyperflux.backends.torch.compact.execution import leaves
from hyperflux.backends.torch.compact.nodes import KIND_READS, is_getitem, read_name

Dependence = bool | tuple[bool, ...]
"""Whether a scalar depends on the size of the inputs; for a torch.Size, whether each entry does."""


def size_dependence(
    graph: fx.Graph, tensor_of: Callable[[Any], AbstractTensor | None], scalars: Mapping[fx.Node, Any]
) -> dict[fx.Node, Dependence]:
    """Find which scalars are computed from dynamic dimensions, however equal they were in the executions.

    Args:
        graph: The graph.
        tensor_of: Gives the abstract tensor of a node, or None.
        scalars: The results that are no tensors.

    Returns:
        By node of `scalars`, its dependence. What is read from the values of a tensor counts as dependent.
    """
    found: dict[fx.Node, Dependence] = {}
    for node in graph.nodes:
        if node in scalars:
            found[node] = node.op.startswith("call") and _dependence(node, tensor_of, found)
    return found


def _dependence(
    node: fx.Node, tensor_of: Callable[[Any], AbstractTensor | None], found: Mapping[fx.Node, Dependence]
) -> Dependence:
    name = read_name(node)
    tensor = tensor_of(node.args[0]) if node.args else None
    if tensor is not None:
        return _of_tensor(node, name, tensor)
    sources = [found.get(source, True) for source in node.all_input_nodes]
    if is_getitem(node) and isinstance(sources[0] if sources else None, tuple) and len(sources) == 1:
        picked: Dependence = sources[0][node.args[1]]  # type: ignore[index]
        return picked
    return any(any(source) if isinstance(source, tuple) else source for source in sources)


def _of_tensor(node: fx.Node, name: str, tensor: AbstractTensor) -> Dependence:
    if name in KIND_READS and tensor.has_fixed_rank:
        return False
    dynamic = tuple(tensor.is_dynamic(dim) for dim in range(len(tensor.shape)))
    if name == "shape" or (name == "size" and len(node.args) == 1 and not node.kwargs):
        return dynamic if tensor.has_fixed_rank else True
    if name == "size" and tensor.has_fixed_rank:
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        return dynamic[dim] if isinstance(dim, int) else True
    if name in ("len", "__len__"):
        return dynamic[0]
    return any(dynamic) if name in ("numel", "nelement") else True


def depends(argument: Any, dependence: Mapping[fx.Node, Dependence]) -> bool:
    """Return whether a call's argument contains a scalar that depends on the size of the inputs."""
    nodes: list[fx.Node] = []
    fx.node.map_arg(argument, nodes.append)
    return any(any(leaves(dependence.get(node, False))) for node in nodes)
