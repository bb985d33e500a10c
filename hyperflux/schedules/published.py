"""The published course, as in the paper: E8 to E10. It ends near its target, not exactly at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hyperflux.errors import InputError
from hyperflux.io.arguments import kind_of
from hyperflux.io.ranges import fraction
from hyperflux.schedules.base import Observation, Ranking, StepSettings, restored, settle_counts, settle_number
from hyperflux.schedules.controllers import PublishedController, PublishedControllerState
from hyperflux.schedules.curves import presence_decay, trajectory
from hyperflux.spec import INITIAL_PRESENCE

MAX_INTERVALS = 1_000_000
"""Most control intervals of a stage; the trajectory holds a density for each."""


@dataclass(frozen=True)
class PublishedScheduleState:
    """State of the published course.

    Attributes:
        intervals: Control intervals that have ended.
        pressure: γ.
        controller: State of the controller.
    """

    intervals: int = 0
    pressure: float = 0.0
    controller: PublishedControllerState = field(default_factory=PublishedControllerState)


@dataclass(frozen=True)
class PublishedSchedule:
    """Trajectory (E8), controller (E9) and two stages (E10); a control interval is an epoch of the paper.

    Intervals divide each stage as evenly as whole steps allow.

    Attributes:
        final_density: The density at which the trajectory ends, a fraction.
        pruning_steps: Steps of the pruning stage.
        regrowth_steps: Steps of the regrowth stage.
        pruning_intervals: Control intervals of the pruning stage.
        regrowth_intervals: Control intervals of the regrowth stage.
        presence_lr: η_t while pruning.
        presence_reset: In regrowth η_t restarts at this multiple of `presence_lr`.
        presence_decay: Factor on η_t at each interval of regrowth.
        controller: The controller of pressure.
        trajectory: Target densities at the ends of the pruning intervals.
    """

    final_density: float
    pruning_steps: int
    regrowth_steps: int
    pruning_intervals: int
    regrowth_intervals: int
    presence_lr: float = 1e-3
    presence_reset: float = 1.0
    presence_decay: float = 0.75
    controller: PublishedController = field(default_factory=PublishedController)
    trajectory: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "final_density", fraction("final_density", self.final_density))
        settle_counts(self, pruning_steps=1, regrowth_steps=0, pruning_intervals=1, regrowth_intervals=0)
        for stage in ("pruning", "regrowth"):
            if (intervals := getattr(self, f"{stage}_intervals")) > MAX_INTERVALS:
                raise InputError(f"{stage}_intervals: {intervals:,} are too many; give {MAX_INTERVALS:,} or fewer")
        settle_number(self, "presence_lr", 0, ends="()")
        settle_number(self, "presence_reset", 0)
        settle_number(self, "presence_decay", 0, 1, "[]")
        if not isinstance(self.controller, PublishedController):
            raise InputError(f"controller: {kind_of(self.controller)} is not a PublishedController")
        object.__setattr__(self, "trajectory", trajectory(self.final_density, self.pruning_intervals))

    @property
    def initial_presence(self) -> tuple[float, float]:
        """The paper's interval (see E2)."""
        return INITIAL_PRESENCE

    @property
    def ranking(self) -> Ranking:
        """By t."""
        return "presence"

    def initial_state(self) -> PublishedScheduleState:
        """The state before the first interval: no pressure."""
        return PublishedScheduleState()

    def next_control_step(self, state: PublishedScheduleState) -> int:
        """The last step of the current interval; after the last interval, a step that is never reached."""
        number = state.intervals + 1
        if number <= self.pruning_intervals:
            return number * self.pruning_steps // self.pruning_intervals
        number -= self.pruning_intervals
        if number <= self.regrowth_intervals:
            return self.pruning_steps + number * self.regrowth_steps // self.regrowth_intervals
        return self.pruning_steps + self.regrowth_steps + 1

    def settings(self, state: PublishedScheduleState) -> StepSettings:
        """The controller's pressure while pruning, none in regrowth, a frozen t afterwards (E10)."""
        number = state.intervals + 1
        if number <= self.pruning_intervals:
            return StepSettings(state.pressure, self.presence_lr)
        number -= self.pruning_intervals
        if number <= self.regrowth_intervals:
            return StepSettings(
                0.0, presence_decay(self.presence_lr * self.presence_reset, self.presence_decay, number)
            )
        return StepSettings(0.0, None)

    def advance(self, state: PublishedScheduleState, observation: Observation) -> PublishedScheduleState:
        """The state after an interval; the controller acts on its final density while pruning."""
        number = state.intervals + 1
        if number > self.pruning_intervals:
            return replace(state, intervals=number, pressure=0.0)
        controller, pressure = self.controller.update(
            state.controller, self.trajectory[number - 1], observation.density()
        )
        return PublishedScheduleState(number, pressure, controller)

    def target_count(self, step: int) -> None:
        """None: pressure and flux alone decide."""

    def target_density(self, step: int) -> float:
        """The trajectory at the end of the interval that `step` belongs to."""
        interval = -(-step * self.pruning_intervals // self.pruning_steps)
        return self.trajectory[min(max(interval, 1), self.pruning_intervals) - 1]

    def max_travel(self, step: int) -> float:
        """The sum of t's learning rates over the steps left."""
        rates, start = 0.0, step
        state = self.initial_state()
        while (end := self.next_control_step(state)) <= self.pruning_steps + self.regrowth_steps:
            rates += (self.settings(state).presence_lr or 0.0) * max(0, end - start)
            start, state = max(start, end), replace(state, intervals=state.intervals + 1)
        return rates

    def restore(self, saved: Mapping[str, Any]) -> PublishedScheduleState:
        """A state from its dictionary. Raises InputError if another schedule saved it."""
        if not isinstance(saved, Mapping) or not isinstance(saved.get("controller"), Mapping):
            raise InputError(f"schedule state: {saved} is not a state of the published course")
        controller = restored(PublishedControllerState, saved["controller"])
        return restored(PublishedScheduleState, {**saved, "controller": controller})
