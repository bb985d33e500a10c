"""Warnings while a network is pruned: each is one line, given once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from hyperflux.schedules.base import Gate, PruningSchedule

NEAR = 1.1
"""A density within this factor of the target, on either side, counts as having reached it."""
CHANCE = 0.001
"""An accuracy counts as guessing if guessing is at least as accurate with this probability or more."""


class Warnings:
    """Gives each warning once per topic.

    Attributes:
        lines: The warnings given so far, by topic, in order.
    """

    def __init__(self, announce: Callable[[str], None]) -> None:
        """`announce` receives each line."""
        self._announce = announce
        self.lines: dict[str, str] = {}

    def warn_once(self, topic: str, line: str | None) -> None:
        """Announce `line`, unless it is None or the topic already has a warning."""
        if line is not None and topic not in self.lines:
            self.lines[topic] = line
            self._announce(line)


def empty_layer(name: str, where: str) -> str:
    """The warning that a layer has no present weight or channel; `where` says when it was found."""
    return (
        f"{name}: has nothing left {where}, so its output no longer depends on its input; prune less or, on the torch "
        f"backend, exclude {name}"
    )


def out_of_reach(schedule: PruningSchedule[Any], gate: Gate, where: str) -> str | None:
    """The warning that the density can no longer reach its target; None if it can.

    A weight stays as it is, present or pruned, if |t| exceeds the distance that t can travel in the remaining steps.
    """
    travel = schedule.max_travel(gate.steps)
    if not math.isfinite(travel):
        return None  # capacity brings it there
    target = schedule.target_density(schedule.pruning_steps)
    least, most = gate.above(travel) / gate.total, gate.above(-travel) / gate.total
    if least <= target * NEAR and most >= target / NEAR:
        return None
    nearest = least if least > target * NEAR else most
    return (
        f"density: {where} it can get no closer to the target of {target:.3g} than {nearest:.3g}, because t moves by "
        f"about {travel:.2g} in the remaining steps; give the pruning stage more steps, or use the default controller"
    )


def at_chance(accuracy: float, samples: int, classes: int, dense_accuracy: float | None) -> str | None:
    """The warning that the pruned network only guesses; None if it does better, or if the dense one guessed too.

    Args:
        accuracy: Share of correct answers of the pruned network.
        samples: Number of test samples.
        classes: Number of classes.
        dense_accuracy: Share of correct answers of the dense network, if known.
    """
    if not is_guessing(accuracy, samples, classes):
        return None
    if dense_accuracy is not None and is_guessing(dense_accuracy, samples, classes):
        return None
    return (
        f"accuracy: {accuracy:.4f} after pruning is no better than guessing one of {classes} classes; use a lower "
        "sparsity, or more epochs"
    )


def is_guessing(accuracy: float, samples: int, classes: int) -> bool:
    """Whether guessing one of `classes` is at least this accurate with a probability of `CHANCE` or more (binomial)."""
    from scipy.special import bdtrc

    right = round(accuracy * samples)
    return right == 0 or bool(bdtrc(right - 1, samples, 1 / classes) >= CHANCE)
