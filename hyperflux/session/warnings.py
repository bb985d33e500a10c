"""What a user should be told of while a network is pruned: each a plain line, None where there is nothing to tell."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from hyperflux.backends.base import Evaluation, LayerCount
from hyperflux.schedules.base import Gate, PruningSchedule

NEAR = 1.1
"""Factor on either side of the target within which a density counts as having reached it."""
CHANCE = 0.001
"""Least probability of so many right guesses at which an accuracy is one of guessing."""


class Warnings:
    """Tells each caution once, by its `topic`, and keeps the lines in `told`."""

    def __init__(self, announce: Callable[[str], None]) -> None:
        self._announce = announce
        self.lines: dict[str, str] = {}

    def warn_once(self, topic: str, line: str | None) -> None:
        """Announce a line unless there is none, or one was told on this topic."""
        if line is not None and topic not in self.lines:
            self.lines[topic] = line
            self._announce(line)


def starved(layers: Iterable[LayerCount]) -> list[str]:
    """Names of the layers that have no weight left."""
    return [layer.name for layer in layers if not layer.surviving]


def starved_line(name: str, where: str, exclude: str) -> str:
    """What it means that a layer has no weight left, and the way out: the option `exclude`, where there is one."""
    kept = f"keep it dense with {exclude}, or take" if exclude else "take"
    return f"{name}: has no weight left {where}, so its output no longer depends on its input; {kept} a lower sparsity"


def out_of_reach(schedule: PruningSchedule[Any], gate: Gate, where: str) -> str | None:
    """Whether the density can't come to its target any more, at one learning rate of t a step.

    A weight whose t is farther from 0 than all steps left will carry it stays as it is: present or pruned.
    """
    reach = schedule.max_travel(gate.steps)
    if not math.isfinite(reach):
        return None  # capacity brings it there
    target = schedule.target_density(schedule.pruning_steps)
    least, most = gate.above(reach) / gate.total, gate.above(-reach) / gate.total
    if least <= target * NEAR and most >= target / NEAR:
        return None
    nearest = least if least > target * NEAR else most
    return (
        f"density: {where} it can come no nearer to the target of {target:.3g} than {nearest:.3g}, because t moves by "
        f"about {reach:.2g} in the steps left; give the pruning stage more steps, or take the default controller"
    )


def at_chance(evaluation: Evaluation, classes: int, dense_accuracy: float | None) -> str | None:
    """Whether the pruned network is right no more often than a guess may be, and the dense one was not so bad."""
    samples = evaluation.samples
    if not is_guessing(evaluation.accuracy, samples, classes):
        return None
    if dense_accuracy is not None and is_guessing(dense_accuracy, samples, classes):
        return None
    return (
        f"accuracy: {evaluation.accuracy:.4f} after pruning is no better than guessing one of {classes} classes; take "
        "a lower sparsity, or more epochs"
    )


def is_guessing(accuracy: float, samples: int, classes: int) -> bool:
    """Whether a guess is right at least so often with a probability of `CHANCE` or more: binomial, one in `classes`."""
    from scipy.special import bdtrc

    right = round(accuracy * samples)
    return right == 0 or bool(bdtrc(right - 1, samples, 1 / classes) >= CHANCE)
