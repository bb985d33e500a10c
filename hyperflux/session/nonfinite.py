"""Steps in which a value is not finite: the run stops, or the step is skipped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hyperflux.errors import InputError, RunError

ON_NONFINITE = ("stop", "skip")
"""What to do with a non-finite step: stop the run, or skip the step."""
MAX_IN_A_ROW = 100
"""The run stops after this many skipped steps in a row: single batches are then not the cause."""


HEADROOM = 1e-3
"""Weights may be this share of the square root of their dtype's largest number, which leaves room for gradients."""


def require_in_range(name: str, largest: float, dtype_max: float) -> None:
    """Raise InputError for weights whose flux would overflow: Adam squares the product of weight and gradient.

    Args:
        name: The layer's weights.
        largest: Largest magnitude of a weight; NaN if one is NaN.
        dtype_max: Largest finite number of the dtype of w and t.
    """
    limit = math.sqrt(dtype_max) * HEADROOM
    if not math.isfinite(largest):
        raise InputError(f"{name}: holds a weight of {largest}; load weights that are finite")
    if largest > limit:
        raise InputError(
            f"{name}: holds a weight of {largest:.3g}; beyond {limit:.2g} products of weights and gradients overflow, "
            "so scale the layer down, exclude it or use a wider dtype"
        )


@dataclass(frozen=True)
class Fault:
    """A quantity that became inf or NaN.

    Attributes:
        what: The quantity in words, such as "the loss" or "the gradient of fc1.weight".
        value: inf or NaN.
        skippable: Whether skipping the step leaves a finite network.
    """

    what: str
    value: float
    skippable: bool

    @classmethod
    def of_norm(cls, what: str, norm: float, skippable: bool) -> Fault:
        """A fault found by its 2-norm, which can overflow although every value is finite. A loss is its own norm."""
        return cls(f"the norm of {what}" if math.isinf(norm) and what != "the loss" else what, norm, skippable)

    def __str__(self) -> str:
        return f"{self.what} became {self.value}"


class NotFiniteError(RunError):
    """Training cannot continue because of a fault.

    Attributes:
        fault: What is not finite.
        step: The step of the epoch, from 1; None after the last one.
    """

    def __init__(self, fault: Fault, step: int | None = None, why: str = "", where: str = "") -> None:
        counted = "at the end of the epoch" if step is None else f"in step {step} of the epoch"
        super().__init__(f"{why}{fault} {where or counted}")
        self.fault, self.step, self._why, self._where = fault, step, why, where

    def __reduce__(self) -> tuple[Any, ...]:
        """Arguments from which another rank rebuilds this error."""
        return NotFiniteError, (self.fault, self.step, self._why, self._where)

    def at(self, where: str) -> NotFiniteError:
        """The same error, with another description of the place."""
        return NotFiniteError(self.fault, self.step, self._why, where)

    def in_step(self, step: int) -> NotFiniteError:
        """The same error, at a step of the epoch."""
        return NotFiniteError(self.fault, step, self._why, self._where)


class NonFiniteGuard:
    """Decides for each non-finite step whether the run stops or skips the step, and counts skipped steps.

    Attributes:
        may_skip: Whether non-finite steps are skipped.
        skipped: Steps skipped so far.
        in_a_row: Steps skipped since the last finite one.
        first: The first fault that was skipped, and its step in its epoch; None before that.
    """

    def __init__(self, on_nonfinite: str) -> None:
        self.may_skip = on_nonfinite == "skip"
        self.skipped = self.in_a_row = 0
        self.first: tuple[Fault, int] | None = None

    def counts(self) -> dict[str, int]:
        """The counts, to be saved in a checkpoint."""
        return {"skipped": self.skipped, "skipped_in_a_row": self.in_a_row}

    def restore(self, counts: Mapping[str, Any]) -> None:
        """Continue from saved counts."""
        self.skipped, self.in_a_row = int(counts["skipped"]), int(counts["skipped_in_a_row"])

    def accept(self) -> None:
        """Note that a step was finite."""
        self.in_a_row = 0

    def skip(self, fault: Fault, step: int) -> None:
        """Skip a step.

        A fault that skipping cannot repair is a parameter: it is seen before the step, so the previous step caused it.

        Raises:
            NotFiniteError: Skipping is off or would not help, or `MAX_IN_A_ROW` steps in a row were skipped.
        """
        if not fault.skippable:
            raise NotFiniteError(fault, step - 1)
        if not self.may_skip:
            raise NotFiniteError(fault, step)
        self.skipped += 1
        self.first = self.first or (fault, step)
        self.count_scaler_skip(fault, step)

    def count_scaler_skip(self, fault: Fault, step: int) -> None:
        """Count a step that a GradScaler skips. Raises NotFiniteError after `MAX_IN_A_ROW` steps in a row."""
        self.in_a_row += 1
        if self.in_a_row >= MAX_IN_A_ROW:
            lasting = Fault(fault.what, fault.value, skippable=False)
            raise NotFiniteError(lasting, step, f"{self.in_a_row} steps in a row were skipped, the last because ")


def skipped_line(guard: NonFiniteGuard) -> str | None:
    """A line that says how many steps were skipped; None if none was."""
    if not guard.skipped:
        return None
    steps = "1 step was" if guard.skipped == 1 else f"{guard.skipped:,} steps were"
    return f"{steps} skipped because a value was not finite"
