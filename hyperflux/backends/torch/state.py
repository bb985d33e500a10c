"""Everything that a training step depends on, as arrays by name, and back into a new backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hyperflux.backends.torch.gate import TorchGate
from hyperflux.backends.torch.gate_state import gate_state, restore_gate
from hyperflux.backends.torch.training import EpochProgress
from hyperflux.errors import InputError
from hyperflux.io.flatten import flatten, subtree

Arrays = dict[str, NDArray[Any]]


def model_state(model: nn.Module) -> Arrays:
    """Every parameter and every buffer, including those that `state_dict` omits."""
    return {name: to_array(tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())}


@torch.no_grad()
def restore_model(model: nn.Module, saved: Mapping[str, NDArray[Any]]) -> None:
    """Copy saved values into the model's tensors."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        tensor.copy_(torch.from_numpy(saved[name]))


def gate_arrays(gate: TorchGate) -> Arrays:
    """The state of a gate as arrays by name."""
    state = gate_state(gate)
    parts = {f"parameter/{name}": _arrays(values) for name, values in state.pop("parameters").items()}
    return flatten({"counts": _arrays(state), **parts})


def nested_gate_state(gate: TorchGate, saved: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """What `gate_state` returned, from the arrays of `gate_arrays` of a gate on the same parameters."""
    parameters = {
        name: {
            key: torch.from_numpy(array) if array.ndim else array.item()
            for key, array in subtree(saved, f"parameter/{name}").items()
        }
        for name in gate.store.saved()
    }
    counts = {name: int(count) for name, count in subtree(saved, "counts").items()}
    return {**counts, "parameters": parameters}


def restore_gate_arrays(gate: TorchGate, saved: Mapping[str, NDArray[Any]]) -> None:
    """Restore a gate on the same parameters; restore the model first."""
    restore_gate(gate, nested_gate_state(gate, saved))


def optimizer_state(optimizer: torch.optim.Optimizer) -> Arrays:
    """Momentum, moments and counts: every tensor by its parameter's index, with device and strides.

    Strides are saved because operations on another memory layout may round differently.
    """
    parts: dict[str, Arrays] = {}
    for number, parameter in enumerate(optimizer_parameters(optimizer)):
        tensors = {key: value for key, value in optimizer.state.get(parameter, {}).items() if isinstance(value, Tensor)}
        parts[f"{number}/value"] = {key: to_array(tensor) for key, tensor in tensors.items()}
        parts[f"{number}/stride"] = {key: np.array(tensor.stride(), np.int64) for key, tensor in tensors.items()}
        parts[f"{number}/host"] = {key: np.array(tensor.device.type == "cpu") for key, tensor in tensors.items()}
    return flatten(parts)


@torch.no_grad()
def restore_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, NDArray[Any]]) -> None:
    """Restore a new optimizer of the same parameters, each tensor with its device and strides."""
    for number, parameter in enumerate(optimizer_parameters(optimizer)):
        for key, array in subtree(saved, f"{number}/value").items():
            value = torch.from_numpy(array)
            if value.ndim and value.shape != parameter.shape:
                raise InputError(f"optimizer: its {key} has shape {tuple(value.shape)}, not {tuple(parameter.shape)}")
            device = "cpu" if saved[f"{number}/host/{key}"] else parameter.device
            strides = tuple(saved[f"{number}/stride/{key}"].tolist())
            kept = torch.empty_strided(value.shape, strides, dtype=value.dtype, device=device)
            optimizer.state[parameter][key] = kept.copy_(value)


def sums(progress: EpochProgress) -> Arrays:
    """The samples of the current epoch so far, and the sum of their loss if there are any."""
    samples = {"samples": np.array(progress.samples)}
    return samples if progress.total is None else {**samples, "loss": to_array(progress.total)}


def restored_progress(batches: int, every: Sequence[Mapping[str, NDArray[Any]]], device: torch.device) -> EpochProgress:
    """Progress after `batches` batches; adds up the sums of `every`, each from one rank."""
    samples = sum(int(own["samples"]) for own in every)
    losses = [torch.from_numpy(own["loss"]) for own in every if "loss" in own]
    return EpochProgress(batches, samples, torch.stack(losses).sum(0).to(device) if losses else None)


def randomness(device: torch.device) -> Arrays:
    """The states of torch's random generators, on the host and on the device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return {name: state.numpy().copy() for name, state in states.items()}


def restore_randomness(device: torch.device, saved: Mapping[str, NDArray[Any]]) -> None:
    """Set torch's random generators, on the host and, if the state was saved on such a device, on the device."""
    torch.set_rng_state(torch.from_numpy(saved["cpu"]))
    if device.type == "cuda" and "cuda" in saved:
        torch.cuda.set_rng_state(torch.from_numpy(saved["cuda"]), device)
    elif device.type == "mps" and "mps" in saved:
        torch.mps.set_rng_state(torch.from_numpy(saved["mps"]))


def to_array(tensor: Tensor) -> NDArray[Any]:
    """A copy on the host."""
    array: NDArray[Any] = tensor.detach().cpu().contiguous().numpy().copy()
    return array


def _arrays(values: Mapping[str, Any]) -> Arrays:
    """Tensors and numbers as arrays."""
    return {key: to_array(value) if isinstance(value, Tensor) else np.array(value) for key, value in values.items()}


def optimizer_parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The parameters of an optimizer, in the order of their numbers in a saved state."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
