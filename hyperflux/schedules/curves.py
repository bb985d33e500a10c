"""Curves that a run follows: densities and learning rates, numbers in and numbers out. Epochs count from 1."""

from __future__ import annotations

import math

from hyperflux.errors import InputError

END_RATIO = 0.999
"""r_end of E8: the share of the density that the trajectory keeps in its last epochs."""
STEEPNESS = 6.0
"""E8's sigmoid runs over about STEEPNESS units in the E epochs of the stage."""
PRESENCE_CUTOFF = 50
"""Regrowth epochs after which the presence parameters' learning rate is exactly 0 (E10)."""
SMALL_NETWORK = 10_000
"""Up to this many prunable weights a control step is cheap compared with a training step."""
MAX_CONTROL_INTERVAL = 5
"""Longest interval between two control steps of the default course."""


def trajectory(target_density: float, epochs: int) -> tuple[float, ...]:
    """Densities wanted after epochs 1 to `epochs`, strictly falling, the last being the target (E8).

    D(e) = Π_{j<=e} r_j with r_j = r_0 + (r_end − r_0)·σ(6/E·(j − E/2)), r_end = 0.999, and r_0 in (0, 0.999) solved
    so that D(E) is `target_density`. Where no such r_0 exists the nearest course of the family is taken, which joins
    the formula without a jump: above 0.999^E every ratio is target^(1/E) (r_0 = r_end, raised), and below what
    r_0 = 0 reaches (a low density in few epochs) r_0 stays 0 and r_end is lowered.

    Raises InputError for a density outside (0, 1) or fewer than one epoch.
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

    Networks of up to `SMALL_NETWORK` of `total` weights are steered after every step: single weights count there.
    """
    if total <= SMALL_NETWORK:
        return 1
    return max(1, min(MAX_CONTROL_INTERVAL, round(pruning_steps / 2000)))


def density_at(course: tuple[float, ...], progress: float) -> float:
    """Density at a share `progress` of a stage whose `course` gives it after each of equal parts; 1 at the start.

    Between two of them the logarithm is interpolated: the density falls by equal shares in equal times.
    """
    place = min(max(progress, 0.0), 1.0) * len(course)
    index = min(int(place), len(course) - 1)
    before = math.log(course[index - 1]) if index else 0.0
    return math.exp(before + (math.log(course[index]) - before) * (place - index))


def cosine(start: float, end: float, epoch: int, epochs: int) -> float:
    """Learning rate in `epoch` of a stage of `epochs`: `start` in the first, half a cosine towards `end`.

    `end` itself would come in epoch epochs + 1, as with torch's CosineAnnealingLR stepped after each epoch.
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
    while low < (middle := (low + high) / 2) < high:  # until no float lies between
        if sum(math.log(middle + (END_RATIO - middle) * share) for share in blend) < log_target:
            low = middle
        else:
            high = middle
    return [high + (END_RATIO - high) * share for share in blend]


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))
