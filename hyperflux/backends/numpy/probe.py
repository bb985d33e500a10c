"""Telemetry's access to the NumPy backend, with its counters: a `hyperflux.telemetry.recorder.Probe`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperflux.backends.numpy.gate import NumpyGate
from hyperflux.telemetry.flux import running_flux
from hyperflux.telemetry.statistics import LayerArrays


class NumpyProbe:
    """Counts flips of every weight, or channel, of a gate."""

    def __init__(self, gate: NumpyGate) -> None:
        self._gate = gate
        count = gate.state.presence.size
        self._mask = np.ones(count, bool)
        self._flips, self._changed_in = np.zeros(count, np.int32), np.zeros(count, np.int16)

    def count(self, interval: int) -> None:
        """Count the weights whose mask changed since the last call."""
        mask = self._gate.present()
        changed = mask ^ self._mask
        self._flips += changed
        self._changed_in[changed] = interval
        self._mask = mask

    def layers(self, flux: bool) -> list[LayerArrays]:
        """Every layer now."""
        gate, state = self._gate, self._gate.state
        presence, flips = gate.named(state.presence), gate.named(self._flips)
        changed_in = gate.named(self._changed_in)
        running = gate.named(running_flux(state.moments, gate.pressure_mean)) if flux else {}
        return [
            LayerArrays(name, presence[name], flips[name], changed_in[name], running.get(name)) for name in gate.parts
        ]

    def flip_counts(self) -> list[NDArray[np.integer[Any]]]:
        """Flips of each weight, one array per layer."""
        return list(self._gate.named(self._flips).values())

    def state(self) -> dict[str, NDArray[Any]]:
        """Copies of the counters by name."""
        return {"flips": self._flips.copy(), "changed_in": self._changed_in.copy(), "mask": self._mask.copy()}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Continue from saved counters."""
        self._flips, self._changed_in, self._mask = (state[name].copy() for name in ("flips", "changed_in", "mask"))
