"""The state of a gate as a nested dictionary of tensors and numbers, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hyperflux.backends.torch.gate import TorchGate
from hyperflux.errors import InputError
from hyperflux.io.saved_state import count, entries, finite

WHAT = "pruner state"
"""What messages call the state."""
NOT_BELOW_ZERO = {"second": "a squared moment", "prices": "a price", "pressure_mean": "a mean of pressure"}
"""Tensors without negative numbers, with words for messages."""


def gate_state(gate: TorchGate) -> dict[str, Any]:
    """The gate's state: copies of w, t and the moments of every parameter, and step counts."""
    parameters = {
        name: {**{key: tensor.clone() for key, tensor in part.tensors().items()}, **part.numbers()}
        for name, part in gate.store.saved().items()
    }
    return {"steps": gate.steps, "last_capacity": gate.last_capacity, "parameters": parameters}


def require_gate_state(saved: Any, gate: TorchGate) -> None:
    """Raise InputError if `restore_gate` could not restore a state as it was saved."""
    own = entries(f"{WHAT}, gate", saved, ("steps", "last_capacity", "parameters"))
    steps = count(f"{WHAT}, steps", own["steps"])
    if count(f"{WHAT}, last_capacity", own["last_capacity"]) > steps:
        raise InputError(f"{WHAT}: last_capacity is {own['last_capacity']}, after step {steps}")
    parts = gate.store.saved()
    parameters = entries(f"{WHAT}, parameters", own["parameters"], parts)
    for name, part in parts.items():
        values = entries(f"{WHAT} of {name}", parameters[name], (*part.tensors(), *part.numbers()))
        for key in part.numbers():
            if key == "steps":
                count(f"{WHAT}, steps of {name}", values[key])
            elif finite(f"{WHAT}, {key} of {name}", values[key]) < 0:
                raise InputError(f"{WHAT}, {key} of {name}: {values[key]} is below 0")
        for key, own_tensor in part.tensors().items():
            _require_alike(f"{WHAT}, {key} of {name}", values[key], own_tensor)
            if key in NOT_BELOW_ZERO and bool((values[key] < 0).any()):
                raise InputError(f"{WHAT}, {key} of {name}: {NOT_BELOW_ZERO[key]} is below 0")


@torch.no_grad()
def restore_gate(gate: TorchGate, saved: Mapping[str, Any]) -> None:
    """Copy a saved state into a gate on the same parameters and write the effective weights, even if interrupted."""
    try:
        for name, part in gate.store.saved().items():
            values = saved["parameters"][name]
            part.restore({key: values[key] for key in part.tensors()}, {key: values[key] for key in part.numbers()})
        gate.steps, gate.last_capacity = int(saved["steps"]), int(saved["last_capacity"])
        gate.lacks_state = False
    finally:
        gate.write_effective()


def _require_alike(what: str, saved: Any, own: Tensor) -> None:
    """Raise InputError unless a saved value is a plain tensor like `own`, on any device that holds values."""
    if not isinstance(saved, Tensor):
        raise InputError(f"{what}: is a {type(saved).__name__}, not a tensor")
    if saved.shape != own.shape:
        raise InputError(f"{what}: has shape {tuple(saved.shape)}, but {tuple(own.shape)} in this Pruner")
    if saved.dtype != own.dtype:
        raise InputError(f"{what}: is {saved.dtype}, but {own.dtype} in this Pruner")
    if saved.layout != torch.strided or saved.is_meta:
        raise InputError(f"{what}: holds no values ({saved.layout} on {saved.device})")
    if not saved.isfinite().all():
        raise InputError(f"{what}: holds {float(saved[~saved.isfinite()][0])}")
