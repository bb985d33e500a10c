"""Names of what the nodes of a graph call."""

from __future__ import annotations

from torch import fx

KIND_READS = ("dim", "ndim", "ndimension", "dtype", "device", "is_floating_point", "is_complex", "is_cuda", "layout")
"""Attributes and methods of a tensor that are the same for every size and all values."""
SHAPE_READS = (*KIND_READS, "shape", "size", "numel", "nelement", "len", "__len__")
"""Attributes and methods of a tensor that are the same for all values."""


def call_name(node: fx.Node) -> str:
    """Return the name of the function or method that a node calls, such as `relu`."""
    return str(getattr(node.target, "__name__", node.target))


def read_name(node: fx.Node) -> str:
    """Return the name of the attribute or method of a tensor that a node reads, such as `shape`."""
    name = call_name(node)
    return str(node.args[1]) if name == "getattr" and len(node.args) > 1 else name


def is_getitem(node: fx.Node) -> bool:
    """Return whether a node indexes its first argument."""
    return node.op == "call_function" and call_name(node) == "getitem"
