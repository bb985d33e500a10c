"""Controllers of pressure: (state, what is seen) -> (state, pressure)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hyperflux.errors import InputError

PRESSURE_EXPONENT = 1.5
"""γ = b^1.5 (E9)."""
INERTIA_SHARE = 0.25
"""Part of the step Δ that each further epoch on the same side of the trajectory adds to the next (E9)."""


@dataclass(frozen=True)
class PublishedControllerState:
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

    def update(
        self, state: PublishedControllerState, wanted: float, seen: float
    ) -> tuple[PublishedControllerState, float]:
        """State and pressure for the next epoch, after one that was to end at `wanted` and ended at `seen` (E9).

        Too dense: b rises by Δ and by an inertia that grows while it keeps rising. Else b falls in the same way, not
        below 0. Both densities are fractions; the pressure is γ = b^1.5.
        """
        gain = self.step * INERTIA_SHARE
        if seen > wanted:
            state = PublishedControllerState(state.base + self.step + state.rising, state.rising + gain, 0.0)
        else:
            state = PublishedControllerState(
                max(0.0, state.base - self.step - state.falling), 0.0, state.falling + gain
            )
        return state, state.base**PRESSURE_EXPONENT


GAIN = 300.0
"""Units of ln γ over the whole pruning stage for a shift as fast as t can move (E13)."""
FASTEST = 0.05
"""Most units of ln γ a step for such a shift: slow beside Adam's mean over ten steps (E13)."""
FIRST_PRESSURE = 0.1
"""γ/N at the first control step, as a share of the typical size of κ g w (E13)."""

MIN_FLUX = 1e-30
"""Least first γ/N, for networks where every gradient is 0 (E13)."""


@dataclass(frozen=True)
class ShiftController:
    """The default controller: pressure rises while the gate has to be moved towards pruning, and falls while back.

    `steps` are those of the pruning stage. The capacity gate holds the density; the pressure that makes it hold by
    itself is the one at which no shift is needed.
    """

    steps: int

    def initial_log_pressure(self, total: int, flux: float) -> float:
        """Ln γ at the first control step, from N and the typical size of κ g w."""
        return math.log(total * max(FIRST_PRESSURE * flux, MIN_FLUX))

    def update(self, log_pressure: float, shift: float, reach: float, steps: int) -> float:
        """Ln γ after an interval of `steps` at whose end the gate moved by `shift`; t moved by at most `reach` (E13).

        The error is the shift as a share of what t can do, u = shift/reach in [−1, 1], and ln γ its integral:
        scale-free in N, η_t and the loss, as long as κ g w is well above Adam's ε.
        """
        error = max(-1.0, min(1.0, shift / reach))
        return log_pressure + min(GAIN / self.steps, FASTEST) * steps * error
