"""The baselines: global gradual pruning on a cubic schedule (Zhu and Gupta 2017, arXiv 1710.01878)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hyperflux.io.did_you_mean import known_name
from hyperflux.schedules.base import Observation, Ranking, StepSettings, restored, settle_gates, settle_totals
from hyperflux.schedules.curves import control_interval
from hyperflux.spec import INITIAL_PRESENCE


@dataclass(frozen=True)
class MagnitudeState:
    """Number of control steps taken."""

    controls: int = 0


@dataclass(frozen=True)
class MagnitudeSchedule:
    """Keep what ranks highest in the whole network; a pruned weight stays pruned.

    After a share x of the pruning stage the sparsity is target·(1 − (1 − x)³). Then the mask is frozen for as many
    steps as Hyperflux spends on regrowth.

    Attributes:
        total: N, or the cost of the dense network.
        final_count: Number of weights left at the end, or the budget.
        pruning_steps: Steps of the pruning stage.
        regrowth_steps: Steps after the pruning stage, with a frozen mask.
        ranking: What ranks gates: "magnitude", |θ| or the norm of a group, or "taylor".
        gates: J, the number of gates; None for one per weight.
    """

    total: int
    final_count: int
    pruning_steps: int
    regrowth_steps: int
    ranking: Ranking = "magnitude"
    gates: int | None = None

    def __post_init__(self) -> None:
        settle_totals(self)
        settle_gates(self)
        known_name("ranking", self.ranking, ("magnitude", "taylor"))

    @property
    def initial_presence(self) -> tuple[float, float]:
        """Any positive interval works, because t only holds the mask."""
        return INITIAL_PRESENCE

    @property
    def _interval(self) -> int:
        return control_interval(self.pruning_steps, self.gates or self.total)

    @property
    def _last_control(self) -> int:
        """Number of control steps of the pruning stage."""
        return -(-self.pruning_steps // self._interval)

    def initial_state(self) -> MagnitudeState:
        """Before the first step."""
        return MagnitudeState()

    def next_control_step(self, state: MagnitudeState) -> int:
        """Every few steps, up to the end of the pruning stage; after that, a step that is never reached."""
        if state.controls >= self._last_control:
            return self.pruning_steps + self.regrowth_steps + 1
        return min((state.controls + 1) * self._interval, self.pruning_steps)

    def settings(self, state: MagnitudeState) -> StepSettings:
        """No pressure; t only holds the mask. For Taylor's ranking its moments move, at rate 0."""
        return StepSettings(0.0, 0.0 if self.ranking == "taylor" and state.controls < self._last_control else None)

    def advance(self, state: MagnitudeState, observation: Observation) -> MagnitudeState:
        """The state after one more control step."""
        return MagnitudeState(state.controls + 1)

    def target_count(self, step: int) -> int:
        """Weights present after `step` steps, at least `final_count`."""
        left = (1 - min(1.0, step / self.pruning_steps)) ** 3
        return self.final_count + round((self.total - self.final_count) * left)

    def target_density(self, step: int) -> float:
        """`target_count` as a fraction of N."""
        return self.target_count(step) / self.total

    def max_travel(self, step: int) -> float:
        """inf: capacity can move t any distance."""
        return math.inf

    def restore(self, saved: Mapping[str, Any]) -> MagnitudeState:
        """A state from its dictionary. Raises InputError if another schedule saved it."""
        return restored(MagnitudeState, saved)
