"""The state of a Pruner as a dictionary of tensors and plain numbers, and back: all of it or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from hyperflux.backends.torch.gate import TorchGate
from hyperflux.backends.torch.gate_state import WHAT, gate_state, require_gate_state, restore_gate
from hyperflux.errors import InputError
from hyperflux.gates.latency import LatencyTable
from hyperflux.io.saved_state import entries
from hyperflux.session.pruning import PruningSession
from hyperflux.telemetry.recorder import Recorder

STATE_FORMAT = 4
"""Version of `Pruner.state_dict`."""


def pruner_state(
    settings: Mapping[str, object], gate: TorchGate, session: PruningSession[Any], latency: LatencyTable | None
) -> dict[str, Any]:
    """The state from which a Pruner with the same settings continues bit for bit; with the layer times, if any."""
    telemetry = None
    if session.recorder is not None:
        telemetry = {name: torch.from_numpy(array) for name, array in session.recorder.state().items()}
    return {
        "format": STATE_FORMAT,
        "settings": dict(settings),
        "schedule": session.state(),
        "gate": gate_state(gate),
        "telemetry": telemetry,
        **({} if latency is None else {"latency": latency.to_dict()}),
    }


def restore_pruner(
    saved: Mapping[str, Any],
    settings: Mapping[str, object],
    gate: TorchGate,
    session: PruningSession[Any],
    latency: LatencyTable | None,
) -> None:
    """Continue from a saved state. Raises InputError, before anything has changed, if it does not fit."""
    recorder = session.recorder
    _require_version(saved)
    names = ["format", "settings", "schedule", "gate", "telemetry"]
    state = entries(WHAT, saved, [*names, *(["latency"] if latency or "latency" in saved else [])])
    for name, value in settings.items():
        if (found := entries(f"{WHAT}, settings", state["settings"], settings)[name]) != value:
            raise InputError(f"{WHAT}: {name} is {found!r}, but {value!r} in this Pruner")
    if latency is not None and state["latency"] != latency.to_dict():
        raise InputError(
            f"{WHAT}: was saved with other layer times than this Pruner has; build it with "
            'latency_table=state["latency"]'
        )
    require_gate_state(state["gate"], gate)
    session.schedule.restore(state["schedule"])
    telemetry = _telemetry(state["telemetry"], recorder, state["gate"]["steps"])
    restore_gate(gate, state["gate"])
    session.restore(state["schedule"])
    if recorder is not None:
        recorder.restore(telemetry)


def _require_version(saved: Any) -> None:
    if not isinstance(saved, Mapping):
        raise InputError(f"{WHAT}: a {type(saved).__name__} is not what state_dict() returned")
    if (found := saved.get("format")) != STATE_FORMAT:
        raise InputError(
            f"{WHAT}: format {found!r} was saved by another version of hyperflux; this one reads format "
            f"{STATE_FORMAT}, so continue with that version"
        )


def _telemetry(saved: Any, recorder: Recorder | None, steps: int) -> dict[str, NDArray[Any]]:
    """Telemetry's state, saved after so many steps, as arrays that `recorder` can restore; empty if it is off here."""
    if recorder is None:
        return {}
    if saved is None:
        raise InputError(f'{WHAT}: saved without telemetry; build this Pruner with telemetry="off"')
    if not isinstance(saved, Mapping) or not all(isinstance(value, Tensor) for value in saved.values()):
        raise InputError(f"{WHAT}, telemetry: is not a dictionary of tensors")
    if meta := [name for name, tensor in saved.items() if tensor.is_meta]:
        raise InputError(f"{WHAT}, telemetry: {meta[0]} holds no values (it is on the meta device)")
    arrays = {name: tensor.cpu().numpy() for name, tensor in saved.items()}
    recorder.require_state(arrays, steps)
    return arrays
