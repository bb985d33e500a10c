"""What becomes of a step in which something is not finite: the run stops, or the step is skipped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hyperflux.errors import RunError

ON_NONFINITE = ("stop", "skip")
"""What can be done about such a step."""
MAX_IN_A_ROW = 100
"""Steps skipped one after the other at which the run stops: it isn't single batches that are to blame."""


@dataclass(frozen=True)
class Fault:
    """`what` became `value`, inf or NaN. It is `skippable` where leaving the step out leaves a sound network."""

    what: str
    value: float
    skippable: bool

    @classmethod
    def of_norm(cls, what: str, norm: float, skippable: bool) -> Fault:
        """By its 2-norm, which may also be infinite where no value is. A loss is its own norm."""
        return cls(f"the norm of {what}" if math.isinf(norm) and what != "the loss" else what, norm, skippable)

    def __str__(self) -> str:
        return f"{self.what} became {self.value}"


class NotFiniteError(RunError):
    """Training can't go on because of `fault`, seen in a step of the epoch, or after its last one (`step` is None)."""

    def __init__(self, fault: Fault, step: int | None = None, why: str = "", where: str = "") -> None:
        counted = "at the end of the epoch" if step is None else f"in step {step} of the epoch"
        super().__init__(f"{why}{fault} {where or counted}")
        self.fault, self.step, self._why, self._where = fault, step, why, where

    def __reduce__(self) -> tuple[Any, ...]:
        """What another process makes the same error of."""
        return NotFiniteError, (self.fault, self.step, self._why, self._where)

    def at(self, where: str) -> NotFiniteError:
        """The same, with the place in other words."""
        return NotFiniteError(self.fault, self.step, self._why, where)

    def in_step(self, step: int) -> NotFiniteError:
        """The same error, in a step of the epoch."""
        return NotFiniteError(self.fault, step, self._why, self._where)


class NonFiniteGuard:
    """Judges every step by the faults found in it. `skipped` steps were left out, the last `in_a_row` without a break.

    `first` is the fault for which a step was skipped first, and that step's number in its epoch.
    """

    def __init__(self, on_nonfinite: str) -> None:
        self.may_skip = on_nonfinite == "skip"
        self.skipped = self.in_a_row = 0
        self.first: tuple[Fault, int] | None = None

    def counts(self) -> dict[str, int]:
        """What a run that goes on has to know."""
        return {"skipped": self.skipped, "skipped_in_a_row": self.in_a_row}

    def restore(self, counts: Mapping[str, Any]) -> None:
        """Go on from these counts."""
        self.skipped, self.in_a_row = int(counts["skipped"]), int(counts["skipped_in_a_row"])

    def accept(self) -> None:
        """A step was sound."""
        self.in_a_row = 0

    def skip(self, fault: Fault, step: int) -> None:
        """Leave the step out. Raises NotFiniteError where that can't help, or isn't wanted.

        What can't be cured is a parameter, seen before the step and so made by the one before it.
        """
        if not fault.skippable:
            raise NotFiniteError(fault, step - 1)
        if not self.may_skip:
            raise NotFiniteError(fault, step)
        self.skipped += 1
        self.first = self.first or (fault, step)
        self.count_scaler_skip(fault, step)

    def count_scaler_skip(self, fault: Fault, step: int) -> None:
        """A GradScaler skips the step by itself. Raises NotFiniteError where that never ends."""
        self.in_a_row += 1
        if self.in_a_row >= MAX_IN_A_ROW:
            lasting = Fault(fault.what, fault.value, skippable=False)
            raise NotFiniteError(lasting, step, f"{self.in_a_row} steps in a row were skipped, the last because ")


def skipped_line(guard: NonFiniteGuard) -> str | None:
    """How many steps were skipped, None where none was."""
    if not guard.skipped:
        return None
    steps = "1 step was" if guard.skipped == 1 else f"{guard.skipped:,} steps were"
    return f"{steps} skipped, because something in them was not finite"
