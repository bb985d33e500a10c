"""Builds a pruning schedule from a network's size, a sparsity and the steps of both stages."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from hyperflux.errors import InputError
from hyperflux.io.did_you_mean import known_name
from hyperflux.io.ranges import fraction, number_in, whole_number
from hyperflux.schedules.base import PruningSchedule, Ranking
from hyperflux.schedules.controllers import PublishedController
from hyperflux.schedules.default import DefaultCourse, DefaultSchedule
from hyperflux.schedules.feasibility import presence_distance, target_count
from hyperflux.schedules.magnitude import MagnitudeSchedule
from hyperflux.schedules.published import PublishedSchedule

METHODS = ("hyperflux", "magnitude", "taylor")
CONTROLLERS = ("default", "published")
PUBLISHED_INTERVALS = 100
"""Control intervals of the published course if the pruning stage is given in steps: the paper's CIFAR epochs."""

Controller = str | PublishedController | DefaultCourse
"""The course of Hyperflux: a name of `CONTROLLERS`, or settings of either course."""


def pruning_schedule(
    total: int,
    sparsity: float,
    pruning_steps: int,
    regrowth_steps: int,
    *,
    method: str = "hyperflux",
    controller: Controller = "default",
    presence_lr: float = 1e-3,
    presence_reset: float = 1.0,
    presence_decay: float = 0.75,
    epoch_steps: int | None = None,
    network: str = "the network",
    argument: str = "sparsity",
) -> PruningSchedule[Any]:
    """Build the schedule that prunes `total` weights to `sparsity`.

    Args:
        total: N, the number of prunable weights.
        sparsity: Share of weights to remove, a fraction between 0 and 1.
        pruning_steps: Optimizer steps of the pruning stage, at least 1.
        regrowth_steps: Optimizer steps of the regrowth stage, at least 0.
        method: "hyperflux" or "magnitude"; "taylor" is for gates of channels, see `counted_schedule`.
        controller: The course of Hyperflux: "default", "published", or settings of either.
        presence_lr: η_t, the learning rate of t while pruning.
        presence_reset: Published course only, see `PublishedSchedule`.
        presence_decay: Published course only, see `PublishedSchedule`.
        epoch_steps: Steps per epoch. The published controller then acts once per epoch, and messages count epochs.
            If None, it acts `PUBLISHED_INTERVALS` times in the pruning stage.
        network: Name of the network in messages.
        argument: Name of the sparsity in messages.

    Raises:
        InputError: A number is out of range; the sparsity is not a fraction, or leaves all weights or none; method or
            controller is unknown; the published course has too few steps for t to cross 0.
    """
    total = whole_number("total", total, 1)
    pruning_steps = whole_number("pruning_steps", pruning_steps, 1)
    regrowth_steps = whole_number("regrowth_steps", regrowth_steps, 0)
    presence_lr = number_in("presence_lr", presence_lr, 0, ends="()")
    presence_reset = number_in("presence_reset", presence_reset, 0)
    presence_decay = number_in("presence_decay", presence_decay, 0, 1, "[]")
    epoch_steps = None if epoch_steps is None else whole_number("epoch_steps", epoch_steps, 1)
    if epoch_steps is not None and epoch_steps > pruning_steps:
        raise InputError(f"epoch_steps: {epoch_steps} are more than pruning_steps, {pruning_steps}")
    final_count = target_count(total, sparsity, network, argument)
    course = _course(controller)
    steps = (pruning_steps, regrowth_steps)
    if known_name("method", method, METHODS) != "hyperflux" or isinstance(course, DefaultCourse):
        return counted_schedule(total, final_count, *steps, method=method, course=course, presence_lr=presence_lr)
    sparsity = fraction(argument, sparsity)
    _require_enough_steps(sparsity, pruning_steps, presence_lr, epoch_steps)
    return PublishedSchedule(
        1 - sparsity, *steps, *_intervals(*steps, epoch_steps), presence_lr, presence_reset, presence_decay, course
    )


def counted_schedule(
    total: int,
    final_count: int,
    pruning_steps: int,
    regrowth_steps: int,
    *,
    method: str = "hyperflux",
    course: Controller = "default",
    presence_lr: float = 1e-3,
    gates: int | None = None,
    is_least: bool = False,
) -> PruningSchedule[Any]:
    """Build the schedule that goes from `total` to exactly `final_count` weights, or units of cost.

    Args:
        total: N, or the cost of the dense network.
        final_count: Weights left at the end, or the budget, below `total`.
        pruning_steps: Optimizer steps of the pruning stage.
        regrowth_steps: Optimizer steps of the regrowth stage.
        method: "hyperflux", "magnitude" or "taylor"; the last is for gates with costs.
        course: The course of Hyperflux; not the published one, which has no count.
        presence_lr: η_t while pruning.
        gates: J, the number of gates; None for one per weight.
        is_least: Whether fewer than `final_count` can't be left on the way; the course then does not undershoot.

    Raises:
        InputError: A number is out of range, or the method can't count.
    """
    if known_name("method", method, METHODS) == "hyperflux":
        settings = _course(course)
        if isinstance(settings, PublishedController):
            raise InputError("controller: the published one prunes single weights only; use the default one")
        if is_least:
            settings = replace(settings, undershoot=1.0)
        return DefaultSchedule(
            total, final_count, pruning_steps, regrowth_steps, presence_lr, settings, gates, every_step=is_least
        )
    if method == "taylor" and gates is None:
        raise InputError("method taylor: ranks gates of channels, not single weights; give --gates channels")
    ranking: Ranking = "magnitude" if method == "magnitude" else "taylor"
    return MagnitudeSchedule(total, final_count, pruning_steps, regrowth_steps, ranking, gates)


def _course(controller: Any) -> PublishedController | DefaultCourse:
    """The settings that `controller` names or is."""
    if isinstance(controller, PublishedController | DefaultCourse):
        return controller
    return DefaultCourse() if known_name("controller", controller, CONTROLLERS) == "default" else PublishedController()


def _intervals(pruning_steps: int, regrowth_steps: int, epoch_steps: int | None) -> tuple[int, int]:
    """Control intervals of both stages of the published course."""
    if epoch_steps is not None:
        return pruning_steps // epoch_steps, regrowth_steps // epoch_steps
    pruning = min(PUBLISHED_INTERVALS, pruning_steps)
    return pruning, min(regrowth_steps, max(1, round(pruning * regrowth_steps / pruning_steps)))


def _require_enough_steps(sparsity: float, steps: int, presence_lr: float, epoch_steps: int | None) -> None:
    """Raise InputError if the published course has too few steps for t to cross 0."""
    distance = presence_distance(sparsity)
    if presence_lr * steps >= distance:
        return
    needed = math.ceil(distance / presence_lr)
    given, way_out = f"pruning_steps: {steps}", f'{needed} steps, a higher presence_lr or controller="default"'
    if epoch_steps is not None:
        given = f"pruning.epochs: {steps // epoch_steps} give {steps} steps of about {presence_lr:g},"
        way_out = (
            f"--pruning-epochs {math.ceil(distance / presence_lr / epoch_steps)}, a higher "
            "pruning.presence_learning_rate or --controller default"
        )
    else:
        given += f" steps of about {presence_lr:g} are"
    raise InputError(
        f"{given} too few for presence parameters to fall by the {distance:.3g} that sparsity {sparsity:g} takes; "
        f"give {way_out}"
    )
