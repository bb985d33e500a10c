"""Curves of density and learning rate, as functions of plain numbers. Epochs count from 1."""

from __future__ import annotations

import math

from hyperflux.errors import InputError

END_RATIO = 0.999
"""r_end of E8: ratio of consecutive densities in the last epochs of the trajectory."""
STEEPNESS = 6.0
"""Width of E8's sigmoid: its argument covers about this many units over the E epochs of the stage."""
PRESENCE_CUTOFF = 50
"""Regrowth epochs after which η_t is exactly 0 (E10)."""
SMALL_NETWORK = 10_000
"""Up to this many prunable weights, every step is a control step."""
MAX_CONTROL_INTERVAL = 5
"""Longest interval between two control steps of the default course."""


def trajectory(target_density: float, epochs: int) -> tuple[float, ...]:
    """Target densities after epochs 1 to `epochs`, strictly falling; the last is `target_density` (E8).

    D(e) = Π_{j<=e} r_j with r_j = r_0 + (r_end − r_0)·σ(6/E·(j − E/2)), r_end = 0.999, and r_0 in (0, 0.999) solved
    so that D(E) is `target_density`. If no such r_0 exists, the curve is continued without a jump: for a target above
    0.999^E every ratio is target^(1/E), and for a target below what r_0 = 0 reaches (a low density in few epochs), r_0
    stays 0 and r_end is lowered.

    Args:
        target_density: The density after the last epoch, a fraction in (0, 1).
        epochs: E, at least 1.

    Raises:
        InputError: The density is outside (0, 1), or there is less than one epoch.
    """
    if not 0 < target_density < 1:
        raise InputError(f"target_density: {target_density} is not between 0 and 1 (both excluded)")
    if epochs < 1:
        raise InputError(f"epochs: {epochs} is too few for a trajectory; give at least 1")
    blend = [_sigmoid(STEEPNESS / epochs * (epoch - epochs / 2)) for epoch in range(1, epochs + 1)]
    densities, log_density = [], 0.0
    for ratio in _ratios(math.log(target_density), blend):
        log_density += math.log(ratio)
        densities.append(math.exp(log_density))
    return tuple(densities)


def control_interval(pruning_steps: int, total: int) -> int:
    """Steps between two control steps: a 2000th of the pruning stage, from 1 to `MAX_CONTROL_INTERVAL`.

    If `total` is at most `SMALL_NETWORK`, every step is a control step: in a small network single weights matter.
    """
    if total <= SMALL_NETWORK:
        return 1
    return max(1, min(MAX_CONTROL_INTERVAL, round(pruning_steps / 2000)))


def density_at(course: tuple[float, ...], progress: float) -> float:
    """The density at a point of a stage, interpolated in its logarithm.

    Args:
        course: Densities at the ends of equal parts of the stage; the stage starts at density 1.
        progress: Share of the stage, from 0 to 1.
    """
    place = min(max(progress, 0.0), 1.0) * len(course)
    index = min(int(place), len(course) - 1)
    before = math.log(course[index - 1]) if index else 0.0
    return math.exp(before + (math.log(course[index]) - before) * (place - index))


def cosine(start: float, end: float, epoch: int, epochs: int) -> float:
    """Learning rate in `epoch` of a stage of `epochs`: `start` in the first, half a cosine towards `end`.

    It would reach `end` in epoch epochs + 1, as torch's CosineAnnealingLR does when stepped after each epoch.
    """
    return end + (start - end) * (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2


def presence_decay(start: float, factor: float, epoch: int) -> float:
    """Learning rate of t in `epoch` of the regrowth stage: start·factor^(epoch−1), 0 after `PRESENCE_CUTOFF`."""
    return start * factor ** (epoch - 1) if epoch <= PRESENCE_CUTOFF else 0.0


def _ratios(log_target: float, blend: list[float]) -> list[float]:
    """r_1..r_E whose logarithms add up to `log_target`."""
    epochs = len(blend)
    if log_target >= epochs * math.log(END_RATIO):
        return [math.exp(log_target / epochs)] * epochs
    log_lowest = sum(math.log(END_RATIO * share) for share in blend)
    if log_target <= log_lowest:
        lowered = END_RATIO * math.exp((log_target - log_lowest) / epochs)
        return [lowered * share for share in blend]
    low, high = 0.0, END_RATIO
    while low < (middle := (low + high) / 2) < high:  # bisect until low and high are adjacent floats
        if sum(math.log(middle + (END_RATIO - middle) * share) for share in blend) < log_target:
            low = middle
        else:
            high = middle
    return [high + (END_RATIO - high) * share for share in blend]


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))
