"""How often to write a checkpoint: every so many steps, or after so much time."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from hyperflux.errors import InputError

UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}
"""Seconds of each unit of time that can be given."""
DEFAULT = "10min"


@dataclass(frozen=True)
class CheckpointInterval:
    """Every `steps` optimizer steps, or every `seconds`; the other one is None."""

    steps: int | None
    seconds: float | None

    @classmethod
    def parse(cls, text: str) -> CheckpointInterval:
        """From "500" or "500steps", "30s", "10min" or "2h". Raises InputError for anything else, and for zero."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?) *(s|min|h|steps|)", text.strip())
        if found and (number := float(found[1])) > 0:
            if found[2] in UNITS:
                return cls(None, number * UNITS[found[2]])
            if number.is_integer():
                return cls(int(number), None)
        raise InputError(
            f"checkpoint-every: {text!r}; give a number of steps such as 500, or a time such as 10min or 2h"
        )


class CheckpointTimer:
    """Tells by its pace when the next checkpoint is due."""

    def __init__(self, pace: CheckpointInterval) -> None:
        self._pace = pace
        self.restart()

    def restart(self) -> None:
        """A checkpoint has been written."""
        self._steps, self._since = 0, time.monotonic()

    def step(self) -> bool:
        """One more step; whether a checkpoint is due after it."""
        self._steps += 1
        if self._pace.steps is not None:
            return self._steps >= self._pace.steps
        return self._pace.seconds is not None and time.monotonic() - self._since >= self._pace.seconds
