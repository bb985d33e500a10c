"""Applies a pruning schedule to a gate, after every optimizer step of any training loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic

from hyperflux.schedules.base import Gate, Observation, PruningSchedule, S, Stage


class PruningScheduler(Generic[S]):
    """Steers `gate` by `schedule`: call `after_step` after every optimizer step and `finish` at the end.

    Attributes:
        schedule: The schedule.
        state: The schedule's state, after the last control step.
    """

    def __init__(self, schedule: PruningSchedule[S], gate: Gate) -> None:
        self.schedule, self.state, self._gate = schedule, schedule.initial_state(), gate
        self._apply_settings()

    @property
    def stage(self) -> Stage:
        """The stage of the next step."""
        if self._gate.steps < self.schedule.pruning_steps:
            return "pruning"
        return "regrowth" if self._gate.steps < self.last_step else "done"

    @property
    def last_step(self) -> int:
        """The last step of the regrowth stage."""
        return self.schedule.pruning_steps + self.schedule.regrowth_steps

    @property
    def control_is_due(self) -> bool:
        """Whether the next `after_step` is a control step."""
        return self._next <= min(self._gate.steps, self.last_step)

    def after_step(self) -> None:
        """Take a control step if one is due: capacity first, then the controller."""
        while self.control_is_due:
            shift = self._meet_capacity(self._next)
            observation = Observation(shift, self._density, self._gate.typical_flux)
            self.state = self.schedule.advance(self.state, observation)
            self._apply_settings()
            self._gate.confirm_masks()

    def finish(self) -> None:
        """Bring the gate to the schedule's final count, even after an early stop."""
        self._meet_capacity(self.last_step)

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Continue from a saved state; restore the gate first. Raises InputError if another schedule saved it."""
        self.state = self.schedule.restore(saved)
        self._apply_settings()

    def _density(self) -> float:
        return self._gate.surviving() / self._gate.total

    def _meet_capacity(self, step: int) -> float:
        count = self.schedule.target_count(step)
        if count is None:
            return 0.0
        return self._gate.meet_capacity(count, self.schedule.ranking)

    def _apply_settings(self) -> None:
        self._next = self.schedule.next_control_step(self.state)
        settings = self.schedule.settings(self.state)
        rate = settings.presence_lr
        self._gate.pressure = float(settings.pressure)  # plain numbers, whatever the schedule computes with
        self._gate.presence_lr = None if rate is None else float(rate)
