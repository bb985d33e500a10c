"""Where a Pruner's parameters are in its model, and whether they still are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from hyperflux.backends.torch.optimizer_hooks import require_hooks
from hyperflux.backends.torch.selection import require_plain
from hyperflux.errors import InputError


@dataclass
class _Place:
    """A module's attribute that holds a prunable parameter.

    Attributes:
        name: The parameter's name.
        path: Names of the modules from the root down to the owner.
        owner: The module.
        attribute: Name of the parameter in it.
    """

    name: str
    path: tuple[str, ...]
    owner: nn.Module
    attribute: str

    def module(self, root: nn.Module) -> nn.Module | None:
        """The module at the path now."""
        module: nn.Module | None = root
        for part in self.path:
            if module is None:
                break
            module = module._modules.get(part)
        return module


class Placement:
    """The places of some parameters in a model. A tied parameter has several.

    A parameter counts as in place if its path holds it, or if its module does and has only been wrapped. Wrappers move
    a module down the path (torch.compile, activation checkpointing); quantization-aware training puts another module
    at the path, with the same parameter.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        self._model = model
        names = {id(parameter): name for name, parameter in parameters.items()}
        self._places = [
            _Place(names[id(parameter)], tuple(path.split(".")) if path else (), module, attribute)
            for path, module in model.named_modules(remove_duplicate=False)
            for attribute, parameter in module._parameters.items()
            if id(parameter) in names
        ]

    def require_unchanged(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Raise InputError, with the reason, if a parameter is no longer where it was in the model."""
        for place in self._places:
            module, parameter = place.module(self._model), parameters[place.name]
            if module is None or module._parameters.get(place.attribute) is not parameter:
                self._require_wrapped(place, parameter)

    def find(self, name: str) -> nn.Parameter:
        """The parameter that is now where `name` was when the placement was made.

        Raises:
            InputError: There is none, or tied places hold different ones.
        """
        found = []
        for place in self._places:
            if place.name == name:
                owner = place.owner if self._path_of(place.owner) is not None else place.module(self._model)
                found.append(None if owner is None else owner._parameters.get(place.attribute))
        if found[0] is None or any(parameter is not found[0] for parameter in found):
            raise InputError(f"{name}: is no longer a parameter of the model, so the Pruner can't go on with it")
        return found[0]

    def _require_wrapped(self, place: _Place, parameter: nn.Parameter) -> None:
        """Raise InputError unless the parameter's module has only moved; note its new path then."""
        path = self._path_of(place.owner)
        if path is not None and place.owner._parameters.get(place.attribute) is parameter:
            place.path = path
            return
        module = place.owner if path is not None else place.module(self._model)
        raise InputError(f"{place.name}: {_reason(module, place.attribute)}")

    def _path_of(self, module: nn.Module) -> tuple[str, ...] | None:
        """Where a module is in the model now; None if it is not in it any more."""
        for path, found in self._model.named_modules(remove_duplicate=False):
            if found is module:
                return tuple(path.split(".")) if path else ()
        return None


def _reason(module: nn.Module | None, attribute: str) -> str:
    """Why the parameter of a module is not the one that the Pruner holds, and the way out."""
    if module is not None and isinstance(module._parameters.get(attribute), nn.Parameter):
        return (
            "is another Parameter object than the one under the Pruner (a layer replaced, a conversion, "
            "load_state_dict(assign=True)), so its weights are not pruned; build an optimizer for the model's "
            "parameters and call follow(optimizer) on the pruner"
        )
    if module is not None and isinstance(getattr(module, attribute, None), torch.Tensor):
        return (
            "is recomputed from other parameters now (a parametrization, weight norm or torch.nn.utils.prune added "
            "later, sharding), so the mask does not hold; remove that, or call release() on the pruner to abandon "
            "pruning"
        )
    return "is no longer in the model; call release() on the pruner and build one for the model as it is now"


def require_followable(
    found: Mapping[str, nn.Parameter], held: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Raise InputError unless a Pruner can continue on the parameters found in its model, with an optimizer.

    Args:
        found: The parameters that are in the model now, by name.
        held: Those under the Pruner.
        optimizer: Trains all of them that are not frozen.
    """
    require_hooks(optimizer)
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in found.items():
        require_plain(name, parameter)
        if parameter.shape != held[name].shape:
            raise InputError(
                f"{name}: has shape {tuple(parameter.shape)} now, but {tuple(held[name].shape)} under the Pruner; "
                "build a new Pruner"
            )
        if parameter.requires_grad and id(parameter) not in trained:
            raise InputError(
                f"{name}: the optimizer does not train it; give one that trains every prunable parameter, or freeze it"
            )
