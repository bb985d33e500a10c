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
    """Counts flips of every weight of a gate."""

    def __init__(self, gate: NumpyGate) -> None:
        self._gate = gate
        self._mask = np.ones(gate.total, bool)
        self._flips, self._changed_in = np.zeros(gate.total, np.int32), np.zeros(gate.total, np.int16)

    def count(self, interval: int) -> None:
        """Count the weights whose mask changed since the last call."""
        mask = self._gate.mask()
        changed = mask ^ self._mask
        self._flips += changed
        self._changed_in[changed] = interval
        self._mask = mask

    def layers(self, flux: bool) -> list[LayerArrays]:
        """Every layer now."""
        state = self._gate.state
        arrays = [self._gate.split(array) for array in (state.presence, self._flips, self._changed_in)]
        running = running_flux(state.moments, self._gate.pressure_mean) if flux else None
        names = list(self._gate.sizes)
        fluxes = [None] * len(names) if running is None else self._gate.split(running)
        return [LayerArrays(*parts) for parts in zip(names, *arrays, fluxes, strict=True)]

    def flip_counts(self) -> list[NDArray[np.integer[Any]]]:
        """Flips of each weight, one array per layer."""
        return list(self._gate.split(self._flips))

    def state(self) -> dict[str, NDArray[Any]]:
        """Copies of the counters by name."""
        return {"flips": self._flips.copy(), "changed_in": self._changed_in.copy(), "mask": self._mask.copy()}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Continue from saved counters."""
        self._flips, self._changed_in, self._mask = (state[name].copy() for name in ("flips", "changed_in", "mask"))
