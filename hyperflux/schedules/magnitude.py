"""The rival: gradual magnitude pruning, global, on a cubic course (Zhu and Gupta 2017, arXiv 1710.01878)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hyperflux.schedules.base import Observation, StepSettings, restored
from hyperflux.schedules.curves import control_interval
from hyperflux.spec import INITIAL_PRESENCE


@dataclass(frozen=True)
class MagnitudeState:
    """Control steps that have taken place."""

    controls: int = 0


@dataclass(frozen=True)
class MagnitudeSchedule:
    """Keep the largest |θ| of the whole network; masks hold after each optimizer step, and nothing comes back.

    The sparsity after a share x of the pruning stage is target·(1 − (1 − x)³); then the mask stays for the steps that
    Hyperflux spends on regrowth. `final_count` of `total` are left.
    """

    total: int
    final_count: int
    pruning_steps: int
    regrowth_steps: int

    @property
    def initial_presence(self) -> tuple[float, float]:
        """Any start does: t only holds the mask."""
        return INITIAL_PRESENCE

    @property
    def by_magnitude(self) -> bool:
        """The largest weights stay."""
        return True

    def initial_state(self) -> MagnitudeState:
        """Before the first step."""
        return MagnitudeState()

    def next_control_step(self, state: MagnitudeState) -> int:
        """Every few steps, up to the end of the pruning stage; after that, a step that never comes."""
        interval = control_interval(self.pruning_steps, self.total)
        if state.controls * interval >= self.pruning_steps:
            return self.pruning_steps + self.regrowth_steps + 1
        return min((state.controls + 1) * interval, self.pruning_steps)

    def settings(self, state: MagnitudeState) -> StepSettings:
        """No pressure; t only holds the mask."""
        return StepSettings(0.0, None)

    def advance(self, state: MagnitudeState, seen: Observation) -> MagnitudeState:
        """One control step further."""
        return MagnitudeState(state.controls + 1)

    def target_count(self, step: int) -> int:
        """Weights left after `step` steps, at least `final_count`."""
        left = (1 - min(1.0, step / self.pruning_steps)) ** 3
        return self.final_count + round((self.total - self.final_count) * left)

    def target_density(self, step: int) -> float:
        """The density of `target_count`."""
        return self.target_count(step) / self.total

    def max_travel(self, step: int) -> float:
        """Any distance: capacity moves t."""
        return math.inf

    def restore(self, saved: Mapping[str, Any]) -> MagnitudeState:
        """A state from its dictionary. Raises InputError where it is of another program."""
        return restored(MagnitudeState, saved)
