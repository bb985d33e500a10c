"""Masks applied to a model that is not under the Pruner itself, such as an average over training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hyperflux.backends.torch.arguments import require_module
from hyperflux.errors import InputError


@torch.no_grad()
def apply_masks(masks: Mapping[str, Tensor], model: nn.Module) -> None:
    """Set the pruned weights of a model to 0, in place.

    Args:
        masks: Masks by parameter name, bool.
        model: A model with parameters of these names and shapes, directly or inside wrappers.

    Raises:
        InputError: A parameter is missing or has another shape; then nothing has changed.
    """
    require_module("model", model)
    parameters = _inside_wrappers(masks, model)
    for name, mask in masks.items():
        if (found := parameters[name]).shape != mask.shape:
            raise InputError(f"model: {name} has shape {tuple(found.shape)}, but its mask {tuple(mask.shape)}")
    for name, mask in masks.items():
        parameters[name].masked_fill_(~mask.to(parameters[name].device), 0)


def _inside_wrappers(masks: Mapping[str, Tensor], model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the outermost module that has all names. Raises InputError if none does."""
    module: nn.Module | None = model
    while module is not None:
        parameters = dict(module.named_parameters(remove_duplicate=False))
        if parameters.keys() >= masks.keys():
            return parameters
        inner = getattr(module, "module", getattr(module, "_orig_mod", None))
        module = inner if isinstance(inner, nn.Module) else None
    known = dict(model.named_parameters())
    missing = next(name for name in masks if name not in known)
    raise InputError(f"model: {type(model).__name__} has no parameter {missing}; give a model of the same architecture")
