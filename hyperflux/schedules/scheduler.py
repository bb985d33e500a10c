"""Carries a schedule out: after every optimizer step of any training loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, Protocol

from hyperflux.schedules.base import Gate, Observation, PruningSchedule, S, Stage


class Watcher(Protocol):
    """Who sees every step, after the schedule has acted: telemetry."""

    def after_step(self) -> None:
        """A step has come to its end."""

    def finish(self) -> None:
        """The last step has, and the gate is at its last capacity."""


class PruningScheduler(Generic[S]):
    """Steers `gate` by `schedule`: call `after_step` after every optimizer step and `finish` at the end.

    A `watcher`, where one is set, is told of both afterwards.
    """

    def __init__(self, schedule: PruningSchedule[S], gate: Gate) -> None:
        self.schedule, self.state, self._gate = schedule, schedule.initial_state(), gate
        self.watcher: Watcher | None = None
        self._give_orders()

    @property
    def stage(self) -> Stage:
        """The stage of the next step."""
        if self._gate.steps < self.schedule.pruning_steps:
            return "pruning"
        return "regrowth" if self._gate.steps < self._end else "done"

    @property
    def is_due(self) -> bool:
        """Whether the schedule acts in the next `after_step`."""
        return self._next <= min(self._gate.steps, self._end)

    def after_step(self) -> None:
        """Let the schedule act where a control step is due."""
        while self.is_due:
            shift = self._meet(self.schedule.target_count(self._next))
            self.state = self.schedule.advance(self.state, Observation(shift, self._density, self._gate.typical_flux))
            self._give_orders()
            self._gate.confirm_masks()
        if self.watcher is not None:
            self.watcher.after_step()

    def finish(self) -> None:
        """Bring the gate to the schedule's last capacity, wherever in its course the run ended."""
        self._meet(self.schedule.target_count(self._end))
        if self.watcher is not None:
            self.watcher.finish()

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state; the gate has been restored before."""
        self.state = self.schedule.restore(saved)
        self._give_orders()

    @property
    def _end(self) -> int:
        return self.schedule.pruning_steps + self.schedule.regrowth_steps

    def _density(self) -> float:
        return self._gate.surviving() / self._gate.total

    def _meet(self, kept: int | None) -> float:
        if kept is None:
            return 0.0
        if self.schedule.by_magnitude:
            self._gate.rank_by_magnitude()
        return self._gate.meet_capacity(kept)

    def _give_orders(self) -> None:
        self._next = self.schedule.next_control_step(self.state)
        orders = self.schedule.settings(self.state)
        self._gate.pressure, self._gate.presence_lr = orders.pressure, orders.presence_lr
