"""The default course: capacity holds the density on its trajectory and its target, pressure follows (E12 to E14)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from hyperflux.errors import InputError
from hyperflux.io.arguments import kind_of
from hyperflux.io.ranges import number_in, true_or_false
from hyperflux.schedules.base import (
    Observation,
    Ranking,
    StepSettings,
    restored,
    settle_gates,
    settle_number,
    settle_totals,
)
from hyperflux.schedules.controllers import ShiftController
from hyperflux.schedules.curves import control_interval, density_at, trajectory
from hyperflux.spec import INITIAL_PRESENCE

TRAJECTORY_PARTS = 100
"""E of the trajectory, independent of the number of epochs or steps (E8, E14)."""
LOWEST_AT = 0.7
"""Share of the pruning stage after which the density is lowest, for gates that hold one weight each (E14)."""
LOWEST_AT_OF_GROUPS = 0.9
"""The same for gates that hold groups of weights."""
UNDERSHOOT = 0.4
"""The lowest density as a share of a target near 0, for gates that hold one weight each (E14)."""
START_SHARE = 0.005
"""The first t lie within this share of the distance that t can travel in the pruning stage (E14)."""


@dataclass(frozen=True)
class DefaultCourse:
    """The settings of the default course. Pass one as `controller` to `Pruner`, or as `[course]` in a recipe (E14).

    Attributes:
        lowest_at: Share of the pruning stage after which the density is lowest; then it rises to the target. None
            stands for `LOWEST_AT`, or `LOWEST_AT_OF_GROUPS`.
        undershoot: The lowest density as a share of the target, for targets near 0; 1 means no undershoot. None stands
            for `UNDERSHOOT`, or 1 where gates hold groups of weights, which gain nothing from it. Patterns (E18) always
            take 1: no group can have fewer than N weights.
        freeze_at: Share of the regrowth stage after which the mask is frozen; until then weights compete.
        gain: Gain of the pressure controller, see `ShiftController`.
        max_rate: Largest change of ln γ per step.
        first_pressure: First γ/N as a share of the typical flux.

    Raises:
        InputError: A value is out of range.
    """

    lowest_at: float | None = None
    undershoot: float | None = None
    freeze_at: float = 0.3
    gain: float = ShiftController.gain
    max_rate: float = ShiftController.max_rate
    first_pressure: float = ShiftController.first_pressure

    def __post_init__(self) -> None:
        ranges = {"lowest_at": (0, 1, "(]"), "undershoot": (0, 1, "(]"), "freeze_at": (0, 1, "[]")}
        for setting in fields(self):
            if getattr(self, setting.name) is None and setting.name in ("lowest_at", "undershoot"):
                continue
            low, high, ends = ranges.get(setting.name, (0, math.inf, "()"))
            number = number_in(f"course.{setting.name}", getattr(self, setting.name), low, high, ends)
            object.__setattr__(self, setting.name, number)  # a plain float, also of NumPy's numbers

    def settled(self, groups: bool = False) -> DefaultCourse:
        """The course with a number in place of None, for gates that hold one weight each or groups of weights."""
        lowest_at, undershoot = (LOWEST_AT_OF_GROUPS, 1.0) if groups else (LOWEST_AT, UNDERSHOOT)
        return replace(
            self,
            lowest_at=lowest_at if self.lowest_at is None else self.lowest_at,
            undershoot=undershoot if self.undershoot is None else self.undershoot,
        )


@dataclass(frozen=True)
class DefaultState:
    """State of the default course.

    Attributes:
        step: Step of the last control step.
        log_pressure: ln γ; None before the first control step.
    """

    step: int = 0
    log_pressure: float | None = None


@dataclass(frozen=True)
class DefaultSchedule:
    """A schedule that ends with exactly `final_count` of `total` weights for any network, data and learning rates.

    Where gates have costs, it counts in units of cost: it ends with the largest network that costs at most
    `final_count` (E17).

    Attributes:
        total: N, or the cost of the dense network.
        final_count: k, the number of weights left at the end, or the budget.
        pruning_steps: Steps of the pruning stage.
        regrowth_steps: Steps of the regrowth stage.
        presence_lr: η_t in the pruning stage.
        course: The other settings.
        gates: J, the number of gates; None for one per weight.
        every_step: Whether every step is a control step, for patterns: capacity holds weights present there whose t
            the next step may lower again.
        trajectory: Densities down to the lowest, at the ends of `TRAJECTORY_PARTS` equal parts of the fall.
    """

    total: int
    final_count: int
    pruning_steps: int
    regrowth_steps: int
    presence_lr: float = 1e-3
    course: DefaultCourse = field(default_factory=DefaultCourse)
    gates: int | None = None
    every_step: bool = False
    trajectory: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        settle_totals(self)
        settle_gates(self)
        settle_number(self, "presence_lr", 0, ends="()")
        object.__setattr__(self, "every_step", true_or_false("every_step", self.every_step))
        if not isinstance(self.course, DefaultCourse):
            raise InputError(f"course: {kind_of(self.course)} is not a DefaultCourse")
        object.__setattr__(self, "course", self.course.settled(groups=self.gates is not None))
        object.__setattr__(self, "trajectory", trajectory(self.lowest_count / self.total, TRAJECTORY_PARTS))

    @property
    def lowest_count(self) -> int:
        """Number of present weights at the lowest density."""
        density, undershoot = self.final_count / self.total, self._share("undershoot")
        return max(1, round(self.final_count * (undershoot + (1 - undershoot) * density)))

    def _share(self, name: str) -> float:
        """A setting of the course, which is settled."""
        return float(getattr(self.course, name))

    @property
    def steps_before_freeze(self) -> int:
        """Steps of regrowth before the mask freeze."""
        return round(self.regrowth_steps * self.course.freeze_at)

    @property
    def controller(self) -> ShiftController:
        """The controller of pressure."""
        course = self.course
        return ShiftController(self.pruning_steps, course.gain, course.max_rate, course.first_pressure)

    @property
    def initial_presence(self) -> tuple[float, float]:
        """Interval of the first t (see E2), narrower in short runs so that the draw does not decide the outcome."""
        low, high = INITIAL_PRESENCE
        scale = min(1.0, START_SHARE * self.presence_lr * self.pruning_steps / high)
        return low * scale, high * scale

    @property
    def ranking(self) -> Ranking:
        """By t."""
        return "presence"

    def initial_state(self) -> DefaultState:
        """Before the first step."""
        return DefaultState()

    def next_control_step(self, state: DefaultState) -> int:
        """Every few steps until the mask freeze, and at the end of pruning; then a step that is never reached."""
        step = state.step + (1 if self.every_step else control_interval(self.pruning_steps, self.gates or self.total))
        for last in (self.pruning_steps, self.pruning_steps + self.steps_before_freeze):
            if state.step < last:
                return min(step, last)
        return self.pruning_steps + self.regrowth_steps + 1

    def settings(self, state: DefaultState) -> StepSettings:
        """Constant η_t while pruning; in regrowth no pressure, and η_t falls linearly until the mask freeze."""
        if state.step < self.pruning_steps:
            pressure = 0.0 if state.log_pressure is None else math.exp(state.log_pressure)
            return StepSettings(pressure, self.presence_lr)
        left = self.pruning_steps + self.steps_before_freeze - state.step
        return StepSettings(0.0, self.presence_lr * left / self.steps_before_freeze if left > 0 else None)

    def advance(self, state: DefaultState, observation: Observation) -> DefaultState:
        """The state after a control step; the controller acts only while pruning."""
        step = self.next_control_step(state)
        if step > self.pruning_steps:
            return DefaultState(step, state.log_pressure)
        if state.log_pressure is None:
            return DefaultState(
                step, self.controller.initial_log_pressure(self.gates or self.total, observation.flux())
            )
        steps = step - state.step
        travel = self.presence_lr * steps
        return DefaultState(step, self.controller.update(state.log_pressure, observation.shift, travel, steps))

    def target_count(self, step: int) -> int:
        """Weights present after the control step at `step`: N·D on the way down, then up to the target (E14)."""
        passed, lowest_at = step / self.pruning_steps, self._share("lowest_at")
        if passed < lowest_at:
            density = density_at(self.trajectory, passed / lowest_at)
            return max(self.lowest_count, round(self.total * density))
        if passed >= 1:
            return self.final_count
        risen = (passed - lowest_at) / (1 - lowest_at)
        return round(self.lowest_count * math.pow(self.final_count / self.lowest_count, risen))

    def target_density(self, step: int) -> float:
        """`target_count` as a fraction of N."""
        return self.target_count(step) / self.total

    def max_travel(self, step: int) -> float:
        """inf: capacity can move t any distance."""
        return math.inf

    def restore(self, saved: Mapping[str, Any]) -> DefaultState:
        """A state from its dictionary. Raises InputError if another schedule saved it."""
        return restored(DefaultState, saved)
