"""Sees the steps of every torch optimizer, and warns of weights that are trained but not pruned."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from hyperflux.backends.torch.gate import TorchGate
from hyperflux.backends.torch.optimizer_hooks import is_inside_step_of
from hyperflux.backends.torch.selection import Patterns, select
from hyperflux.errors import InputError
from hyperflux.session.warnings import Warnings

_watches: weakref.WeakSet[TrainingWatch] = weakref.WeakSet()
_hook: RemovableHandle | None = None


class TrainingWatch:
    """Watches the optimizers around one Pruner.

    It warns once of another optimizer that trains weights under the Pruner, and once of every prunable weight that
    began to be trained after the Pruner was built and therefore stays dense.
    """

    def __init__(
        self,
        model: nn.Module,
        gate: TorchGate,
        parameters: Iterable[nn.Parameter],
        include: Patterns | None,
        exclude: Patterns | None,
        warnings: Warnings,
    ) -> None:
        """Start to watch.

        Args:
            model: The model, without wrappers.
            gate: The gate of the prunable parameters.
            parameters: Those parameters.
            include: The Pruner's patterns.
            exclude: The Pruner's patterns.
            warnings: Receives the warnings.
        """
        self._model, self._gate, self._warnings = model, gate, warnings
        self._include, self._exclude = include, exclude
        self._reported: set[str] = set()
        self._start(parameters)

    def _start(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self._seen: weakref.WeakKeyDictionary[torch.optim.Optimizer, tuple[int, ...]] = weakref.WeakKeyDictionary()
        self._is_new(self._gate.optimizer)
        _watches.add(self)
        _install_hook()

    def follow(self, parameters: Iterable[nn.Parameter]) -> None:
        """Watch other parameter objects, after the gate follows another optimizer."""
        self._start(parameters)

    def stop(self) -> None:
        """Stop watching."""
        _watches.discard(self)
        _install_hook()

    def holds(self, parameters: Iterable[nn.Parameter]) -> bool:
        """Whether one of the parameters is under this watch's Pruner, which still acts."""
        own = {id(parameter) for parameter in self._parameters}
        return self._gate.is_attached and any(id(parameter) in own for parameter in parameters)

    def before_own_step(self) -> None:
        """Warn of weights that have joined the Pruner's optimizer or were unfrozen."""
        if self._is_new(self._gate.optimizer):
            self._warn_of_joined(self._gate.optimizer)

    def is_bypassed_by(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether another optimizer is about to train weights under the Pruner, and did not do so before."""
        gate = self._gate
        if optimizer is gate.optimizer or not gate.is_attached:
            return False
        if gate.is_stepping and is_inside_step_of(gate.optimizer):
            return False
        if (gate.trained_by and type(optimizer).__name__ in self._reported) or _wraps(optimizer, gate.optimizer):
            return False
        trained = {id(parameter) for parameter in _parameters(optimizer) if parameter.grad is not None}
        return any(id(parameter) in trained for parameter in self._parameters)

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Warn of what another optimizer trains without the Pruner."""
        gate = self._gate
        if self.is_bypassed_by(optimizer):
            if gate.trained_by is None:
                self._reported = set()
            gate.trained_by = type(optimizer).__name__
            self._reported.add(gate.trained_by)
            self._warnings.warn_once(
                f"optimizer {gate.trained_by} {gate.steps}",
                f"optimizer: {gate.trained_by} trains weights under a Pruner, which acts in the steps of its own "
                f"{type(gate.optimizer).__name__} only, so nothing is pruned now; call follow(optimizer) on the pruner "
                "before the first step of a new optimizer",
            )
        if optimizer is not gate.optimizer and self._is_new(optimizer):
            self._warn_of_joined(optimizer)

    def _is_new(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether an optimizer is seen for the first time, or trains other parameters than when it was last seen."""
        signature = tuple(id(parameter) if parameter.requires_grad else 0 for parameter in _parameters(optimizer))
        if self._seen.get(optimizer) == signature:
            return False
        self._seen[optimizer] = signature
        return True

    def _warn_of_joined(self, optimizer: torch.optim.Optimizer) -> None:
        try:
            wanted = select(self._model, optimizer, self._include, self._exclude).prunable
        except InputError:
            return  # this optimizer trains nothing that could be pruned
        watched = [parameter for watch in _watches for parameter in watch._parameters]
        held = {id(parameter) for parameter in chain(watched, self._parameters)}
        joined = [name for name, parameter in wanted.items() if id(parameter) not in held]
        if joined:
            others = f" and {len(joined) - 1} more" if len(joined) > 1 else ""
            self._warnings.warn_once(
                f"joined {joined[0]}",
                f"{joined[0]}{others}: trained, but not pruned and not counted, because no optimizer of the Pruner "
                "trained it when the Pruner was built; build the Pruner while everything is trainable and in its "
                "optimizer (what is frozen afterwards is still counted), or exclude it",
            )

    def __getstate__(self) -> dict[str, Any]:
        """Everything but what has been seen, which belongs to this process."""
        return {name: value for name, value in vars(self).items() if name != "_seen"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Watch the copy."""
        vars(self).update(state)
        self._seen = weakref.WeakKeyDictionary()
        if self._gate.is_attached:
            _watches.add(self)
            _install_hook()


def require_free(model: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
    """Raise InputError if one of the parameters is already under a Pruner."""
    found = list(parameters)
    if any(watch.holds(found) for watch in _watches):
        gc.collect()  # a Pruner that nothing refers to any more, apart from its own optimizer, is gone then
        if any(watch.holds(found) for watch in _watches):
            raise InputError(f"model {type(model).__name__}: already under a Pruner; call its finalize() first")


def _install_hook() -> None:
    """Register torch's hook for all optimizers while there is a watch. A compiled step calls it uncompiled."""
    global _hook
    if _watches and _hook is None:
        hook = torch.compiler.disable(_before_any_step)  # type: ignore[no-untyped-call]
        _hook = register_optimizer_step_pre_hook(hook)
    elif not _watches and _hook is not None:
        _hook.remove()
        _hook = None


def _before_any_step(optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if any(watch.is_bypassed_by(optimizer) for watch in _watches):
        gc.collect()  # do not warn for a Pruner that nothing but its own optimizer refers to
    for watch in list(_watches):
        watch.before_step(optimizer)


def _parameters(optimizer: torch.optim.Optimizer) -> chain[nn.Parameter]:
    return chain.from_iterable(group["params"] for group in optimizer.param_groups)


def _wraps(optimizer: torch.optim.Optimizer, inner: torch.optim.Optimizer) -> bool:
    """Whether an optimizer holds another, whose steps it takes: directly, or in a list or dictionary."""
    for value in vars(optimizer).values():
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
        if value is inner or any(part is inner for part in parts):
            return True
    return False
