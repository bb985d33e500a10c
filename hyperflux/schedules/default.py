"""The default course: capacity holds the density on its trajectory and its target, pressure follows (E12 to E14)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hyperflux.schedules.base import Observation, StepSettings, restored
from hyperflux.schedules.controllers import ShiftController
from hyperflux.schedules.curves import control_interval, density_at, trajectory
from hyperflux.spec import INITIAL_PRESENCE

TRAJECTORY_PARTS = 100
"""E of the trajectory, whatever the number of epochs or steps (E8, E14)."""
START_SHARE = 0.005
"""The first t lie within this share of the way that t can go in the pruning stage (E14)."""
ARRIVAL = 0.7
"""Share of the pruning stage after which the density is lowest; in the rest it rises to the target (E14)."""
DIP = 0.4
"""The lowest density as a share of the target, for targets near 0; at a target of 1 there is no dip (E14)."""
SETTLING = 0.3
"""Share of the regrowth stage in which weights come back and compete; then the mask stays (E14)."""


@dataclass(frozen=True)
class DefaultState:
    """Steps at the last control step, and ln γ, which is None before the first."""

    step: int = 0
    log_pressure: float | None = None


@dataclass(frozen=True)
class DefaultSchedule:
    """A course that ends with exactly `final_count` of `total`, whatever the network, the data and the rates."""

    total: int
    final_count: int
    pruning_steps: int
    regrowth_steps: int
    presence_lr: float = 1e-3
    trajectory: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "trajectory", trajectory(self.lowest_count / self.total, TRAJECTORY_PARTS))

    @property
    def lowest_count(self) -> int:
        """Weights present at the course's lowest density."""
        density = self.final_count / self.total
        return max(1, round(self.final_count * (DIP + (1 - DIP) * density)))

    @property
    def steps_before_freeze(self) -> int:
        """Steps of regrowth in which weights come back for others; then the mask stays."""
        return round(self.regrowth_steps * SETTLING)

    @property
    def initial_presence(self) -> tuple[float, float]:
        """The interval of the first t: that of E2, shrunk in short runs so that it doesn't decide their outcome."""
        low, high = INITIAL_PRESENCE
        scale = min(1.0, START_SHARE * self.presence_lr * self.pruning_steps / high)
        return low * scale, high * scale

    @property
    def by_magnitude(self) -> bool:
        """The largest t stay."""
        return False

    def initial_state(self) -> DefaultState:
        """Before the first step."""
        return DefaultState()

    def next_control_step(self, state: DefaultState) -> int:
        """Every few steps, at the end of pruning, and until the mask has settled; then a step that never comes."""
        step = state.step + control_interval(self.pruning_steps, self.total)
        for last in (self.pruning_steps, self.pruning_steps + self.steps_before_freeze):
            if state.step < last:
                return min(step, last)
        return self.pruning_steps + self.regrowth_steps + 1

    def settings(self, state: DefaultState) -> StepSettings:
        """Pressure and t's rate: constant while pruning; in regrowth no pressure, and a rate that falls to 0."""
        if state.step < self.pruning_steps:
            pressure = 0.0 if state.log_pressure is None else math.exp(state.log_pressure)
            return StepSettings(pressure, self.presence_lr)
        left = self.pruning_steps + self.steps_before_freeze - state.step
        return StepSettings(0.0, self.presence_lr * left / self.steps_before_freeze if left > 0 else None)

    def advance(self, state: DefaultState, seen: Observation) -> DefaultState:
        """The state after a control step; pressure is steered while pruning."""
        step = self.next_control_step(state)
        if step > self.pruning_steps:
            return DefaultState(step, state.log_pressure)
        controller = ShiftController(self.pruning_steps)
        if state.log_pressure is None:
            return DefaultState(step, controller.initial_log_pressure(self.total, seen.flux()))
        steps = step - state.step
        return DefaultState(step, controller.update(state.log_pressure, seen.shift, self.presence_lr * steps, steps))

    def target_count(self, step: int) -> int:
        """Weights present after the control step at `step`: N·D on the way down (E8), then up to the target (E14)."""
        passed = step / self.pruning_steps
        if passed < ARRIVAL:
            density = density_at(self.trajectory, passed / ARRIVAL)
            return max(self.lowest_count, round(self.total * density))
        if passed >= 1:
            return self.final_count
        risen = (passed - ARRIVAL) / (1 - ARRIVAL)
        return round(self.lowest_count * math.pow(self.final_count / self.lowest_count, risen))

    def target_density(self, step: int) -> float:
        """The density of `target_count`."""
        return self.target_count(step) / self.total

    def max_travel(self, step: int) -> float:
        """Any distance: capacity moves t."""
        return math.inf

    def restore(self, saved: Mapping[str, Any]) -> DefaultState:
        """A state from its dictionary. Raises InputError where it is of another program."""
        return restored(DefaultState, saved)
