"""Controllers of pressure: (state, observation) -> (state, pressure)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hyperflux.errors import RunError
from hyperflux.io.ranges import number_in

PRESSURE_EXPONENT = 1.5
"""γ = b^1.5 (E9)."""
INERTIA_SHARE = 0.25
"""Share of Δ that each further epoch on the same side of the trajectory adds to the next change of b (E9)."""
MIN_FLUX = 1e-30
"""Smallest first γ/N, for networks whose gradients are all 0 (E13)."""


@dataclass(frozen=True)
class PublishedControllerState:
    """State of the published controller (see E9).

    Attributes:
        base: b.
        rising: Inertia of a rising b.
        falling: Inertia of a falling b.
    """

    base: float = 0.0
    rising: float = 0.0
    falling: float = 0.0


@dataclass(frozen=True)
class PublishedController:
    """The paper's controller.

    Attributes:
        step: Δ > 0. The paper uses 0.3, on CIFAR 0.2 and on ImageNet 0.15.

    Raises:
        InputError: `step` is not a positive number.
    """

    step: float = 0.3

    def __post_init__(self) -> None:
        object.__setattr__(self, "step", number_in("controller step", self.step, 0, ends="()"))  # a plain float

    def update(
        self, state: PublishedControllerState, target_density: float, density: float
    ) -> tuple[PublishedControllerState, float]:
        """State and pressure for the next epoch (E9).

        Too dense: b rises by Δ plus an inertia that grows while b keeps rising. Otherwise b falls in the same way, but
        not below 0. The pressure is γ = b^1.5.

        Args:
            state: The state before the epoch that just ended.
            target_density: Target density at the end of that epoch, a fraction.
            density: Density at the end of that epoch, a fraction.

        Returns:
            The state after the epoch, and γ.
        """
        gain = self.step * INERTIA_SHARE
        if density > target_density:
            state = PublishedControllerState(state.base + self.step + state.rising, state.rising + gain, 0.0)
        else:
            base = max(0.0, state.base - self.step - state.falling)
            state = PublishedControllerState(base, 0.0, state.falling + gain)
        return state, state.base**PRESSURE_EXPONENT


@dataclass(frozen=True)
class ShiftController:
    """The default controller: it integrates the capacity gate's shift into ln γ.

    The capacity gate holds the density on its trajectory by shifting every t. At the right pressure no shift is needed.

    Attributes:
        pruning_steps: Steps of the pruning stage.
        gain: Change of ln γ over the whole pruning stage if the shift were as fast as t can move.
        max_rate: Largest change of ln γ per step, slow compared with Adam's mean over ten steps.
        first_pressure: γ/N at the first control step, as a share of the typical size of κ g w.
    """

    pruning_steps: int
    gain: float = 300.0
    max_rate: float = 0.05
    first_pressure: float = 0.1

    def initial_log_pressure(self, total: int, flux: float) -> float:
        """Ln γ at the first control step, from N and the typical size of κ g w (see E13).

        Raises RunError if the size is not finite: its squares overflow in Adam's second moment.
        """
        if not math.isfinite(flux):
            raise RunError(
                "flux: products of weights and gradients overflow; lower the learning rate or scale the loss down"
            )
        return math.log(total * max(self.first_pressure * flux, MIN_FLUX))

    def update(self, log_pressure: float, shift: float, max_travel: float, steps: int) -> float:
        """Ln γ after a control interval (E13).

        The error is the shift as a share of what t can travel, u = shift/max_travel in [−1, 1]; ln γ is its integral.
        That is scale-free in N, η_t and the loss, as long as κ g w is well above Adam's ε.

        Args:
            log_pressure: ln γ during the interval.
            shift: τ of E12, by which the gate lowered every t at the end of the interval.
            max_travel: How far t could move in the interval, η_t·steps.
            steps: Steps of the interval.

        Returns:
            ln γ for the next interval.
        """
        error = max(-1.0, min(1.0, shift / max_travel))
        return log_pressure + min(self.gain / self.pruning_steps, self.max_rate) * steps * error
