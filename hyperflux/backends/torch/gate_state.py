"""The state of a gate as a nested dictionary of tensors and numbers, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hyperflux.backends.torch.gate import TorchGate
from hyperflux.backends.torch.weight_state import WeightState
from hyperflux.errors import InputError
from hyperflux.io.saved_state import count, entries, finite

WHAT = "pruner state"
"""What messages call the state."""


def gate_state(gate: TorchGate) -> dict[str, Any]:
    """The gate's state: copies of w, t and the moments of every parameter, and step counts."""
    parameters = {
        name: {
            **{key: tensor.clone() for key, tensor in state.tensors().items()},
            "steps": state.steps,
            "pressure_mean": state.pressure_mean,
        }
        for name, state in gate.states.items()
    }
    return {"steps": gate.steps, "last_capacity": gate.last_capacity, "parameters": parameters}


def require_gate_state(saved: Any, gate: TorchGate) -> None:
    """Raise InputError if `restore_gate` could not restore a state as it was saved."""
    own = entries(f"{WHAT}, gate", saved, ("steps", "last_capacity", "parameters"))
    steps = count(f"{WHAT}, steps", own["steps"])
    if count(f"{WHAT}, last_capacity", own["last_capacity"]) > steps:
        raise InputError(f"{WHAT}: last_capacity is {own['last_capacity']}, after step {steps}")
    parameters = entries(f"{WHAT}, parameters", own["parameters"], gate.states)
    for name, state in gate.states.items():
        values = entries(f"{WHAT} of {name}", parameters[name], (*state.tensors(), "steps", "pressure_mean"))
        count(f"{WHAT}, steps of {name}", values["steps"])
        if finite(f"{WHAT}, pressure_mean of {name}", values["pressure_mean"]) < 0:
            raise InputError(f"{WHAT}, pressure_mean of {name}: {values['pressure_mean']} is below 0")
        for key, own_tensor in state.tensors().items():
            _require_alike(f"{WHAT}, {key} of {name}", values[key], own_tensor)
        if bool((values["second"] < 0).any()):
            raise InputError(f"{WHAT}, second of {name}: a squared moment is below 0")


@torch.no_grad()
def restore_gate(gate: TorchGate, saved: Mapping[str, Any]) -> None:
    """Copy a saved state into a gate on the same parameters and write the effective weights, even if interrupted."""
    try:
        for name, state in gate.states.items():
            _restore_parameter(state, saved["parameters"][name])
        gate.steps, gate.last_capacity = int(saved["steps"]), int(saved["last_capacity"])
        gate.lacks_state = False
    finally:
        gate.write_effective()


def _restore_parameter(state: WeightState, values: Mapping[str, Any]) -> None:
    for key, tensor in state.tensors().items():
        tensor.copy_(values[key])
    state.steps, state.pressure_mean = int(values["steps"]), float(values["pressure_mean"])


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
