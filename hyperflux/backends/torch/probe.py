"""Telemetry's access to the torch backend, with its counters: a `hyperflux.telemetry.recorder.Probe`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyperflux.backends.torch.gate import TorchGate
from hyperflux.backends.torch.presence import Presence
from hyperflux.telemetry.host_counters import HostCounters
from hyperflux.telemetry.statistics import LayerArrays

KINDS = ("flips", "changed_in", "mask")
"""Counters of every weight."""


@dataclass
class _DeviceCounters:
    """Counters of one parameter on its device, tensors of its shape: 7 bytes per weight."""

    flips: Tensor
    changed_in: Tensor
    mask: Tensor

    @classmethod
    def of(cls, state: Presence) -> _DeviceCounters:
        t = state.presence
        return cls(
            torch.zeros_like(t, dtype=torch.int32),
            torch.zeros_like(t, dtype=torch.int16),
            torch.ones_like(t, dtype=torch.bool),
        )

    def count(self, state: Presence, interval: int) -> None:
        mask = state.mask()
        changed = self.mask.bitwise_xor_(mask)
        self.flips.add_(changed)
        self.changed_in.masked_fill_(changed, interval)
        self.mask = mask


class TorchProbe:
    """Counts flips of every weight of a gate, without waiting for the device.

    Parameters on the host are counted together, so that many small ones cost little. Others are counted on their
    device.
    """

    def __init__(self, gate: TorchGate) -> None:
        self._gate = gate
        self._place()

    def count(self, interval: int) -> None:
        """Count the weights whose mask changed since the last call."""
        presence = [state.presence for state in self._gate.presence().values()]
        if [t.device for t in presence] != self._devices:
            self._follow_moves()
        if self._host_parts:
            self._host.count([t.numpy() for t in presence if t.is_cpu], interval)
        for name, counters in self._elsewhere.items():
            counters.count(self._gate.presence()[name], interval)

    @torch.no_grad()
    def layers(self, flux: bool) -> list[LayerArrays]:
        """Every layer now, on the host."""
        flips, changed_in = self._counted("flips"), self._counted("changed_in")
        result = []
        for name, state in self._gate.presence().items():
            running = _on_host(state.restoring_flux()) if flux else None
            result.append(LayerArrays(name, _on_host(state.presence), flips[name], changed_in[name], running))
        return result

    def flip_counts(self) -> list[NDArray[np.integer[Any]]]:
        """Flips of each weight, one array per layer, on the host."""
        return list(self._counted("flips").values())

    def state(self) -> dict[str, NDArray[Any]]:
        """Copies of the counters by name, on the host."""
        counted = {kind: self._counted(kind) for kind in KINDS}
        return {f"{kind} {name}": counted[kind][name].copy() for name in self._gate.presence() for kind in KINDS}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Continue from saved counters."""
        parts = {kind: [state[f"{kind} {name}"].ravel() for name in self._host_parts] for kind in KINDS}
        if self._host_parts:
            self._host.restore(**{kind: np.concatenate(parts[kind]) for kind in KINDS})
        for name, counters in self._elsewhere.items():
            for kind in KINDS:
                getattr(counters, kind).copy_(torch.from_numpy(state[f"{kind} {name}"]))

    def held_tensors(self) -> list[Tensor]:
        """The counters in use, to measure memory."""
        elsewhere = [getattr(counters, kind) for counters in self._elsewhere.values() for kind in KINDS]
        return [*map(torch.from_numpy, self._host.held()), *elsewhere]

    def _place(self) -> None:
        """Make new counters where the parameters' states are now."""
        states = self._gate.presence()
        self._devices = [state.presence.device for state in states.values()]
        self._host_parts: dict[str, slice] = {}
        total = 0
        for name, state in states.items():
            if state.presence.is_cpu:
                self._host_parts[name] = slice(total, total := total + state.presence.numel())
        self._host = HostCounters(total)
        elsewhere = {name: state for name, state in states.items() if name not in self._host_parts}
        self._elsewhere = {name: _DeviceCounters.of(state) for name, state in elsewhere.items()}

    def _follow_moves(self) -> None:
        """Move the counters of parameters that have moved to another device."""
        counted = self.state()
        self._place()
        self.restore(counted)

    def _counted(self, kind: str) -> dict[str, NDArray[Any]]:
        """One of `KINDS` for every layer by name, on the host."""
        states, on_host = self._gate.presence(), getattr(self._host, kind)
        return {
            name: on_host[self._host_parts[name]].reshape(tuple(states[name].presence.shape))
            if name in self._host_parts
            else _on_host(getattr(self._elsewhere[name], kind))
            for name in states
        }


def _on_host(tensor: Tensor) -> NDArray[Any]:
    """The tensor as an array; on the host it shares the tensor's memory."""
    return tensor.detach().cpu().numpy()
