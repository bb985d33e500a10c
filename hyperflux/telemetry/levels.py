"""Levels of telemetry: how closely a run is recorded."""

from __future__ import annotations

from dataclasses import dataclass

from hyperflux.io.did_you_mean import known_name


@dataclass(frozen=True)
class Level:
    """The detail of telemetry.

    Attributes:
        intervals: Number of intervals over both stages.
        sample: Number of weights recorded one by one.
    """

    intervals: int
    sample: int


LEVELS: dict[str, Level | None] = {"off": None, "light": Level(200, 32), "full": Level(1000, 512)}


def level(name: str) -> Level | None:
    """The level called `name`; None for "off". Raises InputError for an unknown name."""
    return LEVELS[known_name("telemetry", name, LEVELS)]
