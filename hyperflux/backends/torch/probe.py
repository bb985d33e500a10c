"""What telemetry reads of the torch backend, and its counters: a `hyperflux.telemetry.recorder.Probe`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyperflux.backends.torch.gate import TorchGate
from hyperflux.backends.torch.weight_state import WeightState
from hyperflux.telemetry.statistics import LayerArrays


@dataclass
class _Counters:
    """Of one parameter, tensors of its shape on its device: 7 bytes a weight."""

    flips: Tensor
    changed_in: Tensor
    mask: Tensor

    @classmethod
    def of(cls, state: WeightState) -> _Counters:
        t = state.presence
        return cls(
            torch.zeros_like(t, dtype=torch.int32),
            torch.zeros_like(t, dtype=torch.int16),
            torch.ones_like(t, dtype=torch.bool),
        )

    def count(self, state: WeightState, interval: int) -> None:
        if state.presence.device.type == "cpu":
            self._count_on_host(_host(state.presence) >= 0, interval)
            return
        mask = state.mask()
        self._move_to(mask.device)
        changed = self.mask.bitwise_xor_(mask)
        self.flips.add_(changed)
        self.changed_in.masked_fill_(changed, interval)
        self.mask = mask

    def _move_to(self, device: torch.device) -> None:
        """Follow the parameter, where it has moved."""
        if self.mask.device != device:
            for name in ("flips", "changed_in", "mask"):
                setattr(self, name, getattr(self, name).to(device))

    def _count_on_host(self, mask: NDArray[np.bool_], interval: int) -> None:
        """The same by NumPy, on the tensors' own memory: it finds the few changes several times faster than torch."""
        self._move_to(torch.device("cpu"))
        changed = np.flatnonzero(mask != _host(self.mask))
        _host(self.flips).flat[changed] += 1
        _host(self.changed_in).flat[changed] = interval
        self.mask = torch.from_numpy(mask)


class TorchProbe:
    """Counts flips of every weight of a gate. Between intervals nothing waits for the device."""

    def __init__(self, gated: TorchGate) -> None:
        self._gated = gated
        self._counters = {name: _Counters.of(state) for name, state in gated.states.items()}

    @torch.no_grad()
    def count(self, interval: int) -> None:
        """Note every weight whose mask is not that of the last call."""
        for name, state in self._gated.states.items():
            self._counters[name].count(state, interval)

    @torch.no_grad()
    def layers(self, flux: bool) -> list[LayerArrays]:
        """Every layer now, on the host."""
        result = []
        for name, state in self._gated.states.items():
            counters = self._counters[name]
            running = _host(state.restoring_flux()) if flux else None
            counted = _host(counters.flips), _host(counters.changed_in)
            result.append(LayerArrays(name, _host(state.presence), *counted, running))
        return result

    def flip_counts(self) -> list[NDArray[np.integer[Any]]]:
        """Changes of mask of every layer's weights, on the host."""
        return [_host(counters.flips) for counters in self._counters.values()]

    def state(self) -> dict[str, NDArray[Any]]:
        """The counters, copied to the host."""
        return {
            f"{kind} {name}": _host(getattr(counters, kind)).copy()
            for name, counters in self._counters.items()
            for kind in ("flips", "changed_in", "mask")
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from saved counters."""
        for name, counters in self._counters.items():
            for kind in ("flips", "changed_in", "mask"):
                getattr(counters, kind).copy_(torch.from_numpy(state[f"{kind} {name}"]))


def _host(tensor: Tensor) -> NDArray[Any]:
    """The tensor as an array, which shares its memory where that is the host's."""
    return tensor.detach().cpu().numpy()
