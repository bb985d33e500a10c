"""One pruning session: schedule, controller, telemetry and warnings of one network, the same on every backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Generic, Protocol

from hyperflux.schedules.base import Gate, LayerCount, PruningSchedule, S, Stage
from hyperflux.schedules.scheduler import PruningScheduler
from hyperflux.session.nonfinite import Fault, NotFiniteError
from hyperflux.session.warnings import Warnings, empty_layer, out_of_reach
from hyperflux.telemetry.levels import Level
from hyperflux.telemetry.recorder import Probe, Recorder

CHECKS = 100
"""Number of checks in the pruning stage for layers without weights, a target out of reach, and non-finite weights."""


class SessionGate(Gate, Protocol):
    """A gate whose layers can be counted and whose values can be checked."""

    def layers(self) -> list[LayerCount]:
        """All and open gates of each layer, in the network's order: weights of a parameter, or channels."""

    def drop_dead(self) -> None:
        """Set to 0 what makes closed channels, once the mask is final."""

    def fault(self, latent: bool) -> Fault | None:
        """The first t that is not finite; with `latent` also the first w. None if all are finite."""


class PruningSession(Generic[S]):
    """Prunes one network: call `after_step` after every optimizer step and `finish` at the end.

    A backend calls `after_step` before it writes the effective weights, so that a control step writes them once.

    Attributes:
        gate: The presence parameters.
        scheduler: Takes the control steps; holds the schedule and the controller's state.
        recorder: Telemetry, or None if it is off.
        warnings: The warnings given so far.
    """

    def __init__(
        self,
        schedule: PruningSchedule[S],
        gate: SessionGate,
        warnings: Warnings,
        *,
        probe: Probe | None = None,
        level: Level | None = None,
    ) -> None:
        """Start the session: the gate gets the settings of the first step.

        Args:
            schedule: What the gate does when.
            gate: The presence parameters, before the first step.
            warnings: Receives each warning.
            probe: Counts the gate's flips, for telemetry.
            level: How closely to watch; None turns telemetry off.
        """
        self.gate, self.warnings = gate, warnings
        self.scheduler = PruningScheduler(schedule, gate)
        self.recorder: Recorder | None = None
        if probe is not None and level is not None:
            self.recorder = Recorder(schedule, gate, probe, level)
        self._check_interval = max(1, schedule.pruning_steps // CHECKS)

    @property
    def schedule(self) -> PruningSchedule[S]:
        """The schedule."""
        return self.scheduler.schedule

    @property
    def stage(self) -> Stage:
        """The stage of the next step."""
        return self.scheduler.stage

    @property
    def check_is_due(self) -> bool:
        """Whether everything is checked after the step just taken."""
        return self.gate.steps % self._check_interval == 0

    def after_step(self) -> None:
        """Check values, take a control step if one is due, record, warn.

        Raises:
            NotFiniteError: A t is not finite at a control step, or a t or w at a check.
            RunError: Replicas hold different masks.
        """
        check = self.check_is_due
        if check or self.scheduler.control_is_due:
            self.require_finite(latent=check)
        self.scheduler.after_step()
        if self.recorder is not None:
            self.recorder.after_step()
        if check and self.gate.steps <= self.scheduler.last_step:
            self._warn()

    def finish(self) -> None:
        """Bring the gate to its final count, wherever the run stopped, and drop what then no longer matters."""
        self.scheduler.finish()
        self.gate.drop_dead()
        if self.recorder is not None:
            self.recorder.finish()
        self._warn()

    def state(self) -> dict[str, Any]:
        """The schedule's state, a dictionary of plain numbers. Gate and telemetry save their own states."""
        return {name: _plain(value) for name, value in asdict(self.scheduler.state).items()}  # type: ignore[call-overload]

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Continue from a saved state; restore the gate first. Raises InputError if another schedule saved it."""
        self.scheduler.restore(saved)

    def require_finite(self, latent: bool) -> None:
        """Raise NotFiniteError if a t is not finite, with `latent` also if a w is not."""
        if fault := self.gate.fault(latent):
            raise NotFiniteError(
                fault,
                where=f"by step {self.gate.steps}; return to the last good state, and skip steps whose loss or "
                "gradients are not finite",
            )

    def _warn(self) -> None:
        where = f"after step {self.gate.steps}"
        for layer in self.gate.layers():
            if not layer.surviving:
                self.warnings.warn_once(f"empty {layer.name}", empty_layer(layer.name, where))
        self.warnings.warn_once("density", out_of_reach(self.schedule, self.gate, where))


def _plain(value: Any) -> Any:
    """The number of Python for one of NumPy's, also within a dictionary; other values as they are."""
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return value.item() if hasattr(value, "item") else value
