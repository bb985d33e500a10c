"""Controllers of pressure: (state, density wanted, density seen) -> (state, pressure)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hyperflux.errors import InputError

PRESSURE_EXPONENT = 1.5
"""γ = b^1.5 (E9)."""
INERTIA_SHARE = 0.25
"""Part of the step Δ that each further epoch on the same side of the trajectory adds to the next (E9)."""


@dataclass(frozen=True)
class PublishedState:
    """b and the two inertias of the published controller."""

    base: float = 0.0
    rising: float = 0.0
    falling: float = 0.0


@dataclass(frozen=True)
class PublishedController:
    """The paper's controller. `step` is Δ > 0: 0.3, and 0.2 on CIFAR, 0.15 on ImageNet."""

    step: float = 0.3

    def __post_init__(self) -> None:
        if not (math.isfinite(self.step) and self.step > 0):
            raise InputError(f"controller step: {self.step} is not a positive number")

    def update(self, state: PublishedState, wanted: float, seen: float) -> tuple[PublishedState, float]:
        """State and pressure for the next epoch, after one that was to end at `wanted` and ended at `seen` (E9).

        Too dense: b rises by Δ and by an inertia that grows while it keeps rising. Else b falls in the same way, not
        below 0. Both densities are fractions; the pressure is γ = b^1.5.
        """
        gain = self.step * INERTIA_SHARE
        if seen > wanted:
            state = PublishedState(state.base + self.step + state.rising, state.rising + gain, 0.0)
        else:
            state = PublishedState(max(0.0, state.base - self.step - state.falling), 0.0, state.falling + gain)
        return state, state.base**PRESSURE_EXPONENT
