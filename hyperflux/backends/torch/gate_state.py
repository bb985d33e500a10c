"""The state of a gate as a nested dictionary of tensors and numbers, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hyperflux.backends.torch.gate import TorchGate


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


@torch.no_grad()
def restore_gate(gate: TorchGate, saved: Mapping[str, Any]) -> None:
    """Copy a saved state into a gate on the same parameters and write the effective weights."""
    for name, state in gate.states.items():
        values = saved["parameters"][name]
        for key, tensor in state.tensors().items():
            tensor.copy_(values[key])
        state.steps, state.pressure_mean = int(values["steps"]), float(values["pressure_mean"])
    gate.steps, gate.last_capacity = int(saved["steps"]), int(saved["last_capacity"])
    gate.write_effective()
