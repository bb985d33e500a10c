"""Which layer of torch a module is: subclasses that change nothing count as what they inherit from."""

from __future__ import annotations

from torch import nn

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
COSMETIC = {
    "__init__", "__module__", "__qualname__", "__doc__", "__annotations__", "__annotate__", "__annotate_func__",
    "__annotations_cache__", "__parameters__", "__orig_bases__", "__static_attributes__", "__firstlineno__",
    "__constants__", "__repr__", "extra_repr", "reset_parameters",
}  # fmt: skip
"""Attributes of a class that do not change what its modules compute once they are made."""


def layer_type(module: nn.Module) -> type[nn.Module]:
    """Return the layer of torch.nn whose forward a module runs on its own attributes, or else its own type.

    A subclass may add methods and attributes; it may override none of the layer's, weights included.
    """
    kind = type(module)
    held = {*vars(module), *module._parameters, *module._buffers, *module._modules}
    for base in kind.__mro__:
        if getattr(nn, base.__name__, None) is base:
            is_layer = base is not nn.Module and not issubclass(base, CONTAINERS)
            return base if is_layer else kind
        own = set(vars(base)) - COSMETIC
        if own & held or any(hasattr(parent, name) for parent in base.__bases__ for name in own):
            return kind
    return kind
