"""Carries a program out: after every optimizer step of any training loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, Protocol

from hyperflux.programs.base import Gate, Program, S, Seen, Stage


class Watcher(Protocol):
    """Who sees every step, after the program has acted: telemetry."""

    def after_step(self) -> None:
        """A step has come to its end."""

    def finish(self) -> None:
        """The last step has, and the gate is at its last capacity."""


class Pilot(Generic[S]):
    """Steers `gate` by `program`: call `after_step` after every optimizer step and `finish` at the end.

    A `watcher`, where one is set, is told of both afterwards.
    """

    def __init__(self, program: Program[S], gate: Gate) -> None:
        self.program, self.state, self._gate = program, program.first(), gate
        self.watcher: Watcher | None = None
        self._give_orders()

    @property
    def stage(self) -> Stage:
        """The stage of the next step."""
        if self._gate.steps < self.program.pruning_steps:
            return "pruning"
        return "regrowth" if self._gate.steps < self._end else "done"

    @property
    def is_due(self) -> bool:
        """Whether the program acts in the next `after_step`."""
        return self._next <= min(self._gate.steps, self._end)

    def after_step(self) -> None:
        """Let the program act where a control step is due."""
        while self.is_due:
            shift = self._meet(self.program.kept(self._next))
            self.state = self.program.advance(self.state, Seen(shift, self._density, self._gate.typical_flux))
            self._give_orders()
            self._gate.confirm_masks()
        if self.watcher is not None:
            self.watcher.after_step()

    def finish(self) -> None:
        """Bring the gate to the program's last capacity, wherever in its course the run ended."""
        self._meet(self.program.kept(self._end))
        if self.watcher is not None:
            self.watcher.finish()

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state; the gate has been restored before."""
        self.state = self.program.restore(saved)
        self._give_orders()

    @property
    def _end(self) -> int:
        return self.program.pruning_steps + self.program.regrowth_steps

    def _density(self) -> float:
        return self._gate.surviving() / self._gate.total

    def _meet(self, kept: int | None) -> float:
        if kept is None:
            return 0.0
        if self.program.by_magnitude:
            self._gate.rank_by_magnitude()
        return self._gate.meet_capacity(kept)

    def _give_orders(self) -> None:
        self._next = self.program.next_control(self.state)
        orders = self.program.orders(self.state)
        self._gate.pressure, self._gate.presence_lr = orders.pressure, orders.presence_lr
