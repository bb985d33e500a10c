"""How much surviving weights matter, by three measures, so that the pruning law can be looked for in each of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hyperflux.backends.base import Backend

MEASURES = ("magnitude", "gradient", "taylor")
LOW_QUANTILE = 0.01
"""Share of the surviving weights below the quantile that is recorded beside the smallest."""


@dataclass(frozen=True)
class Saliency:
    """The smallest of one measure among the surviving weights and its low quantile, NaN where there is none.

    Weights whose measure is exactly 0 are counted as `silent` and left out of both: a gradient of 0 over the whole
    training part belongs to a unit that is never active or leads nowhere, and says nothing about the weight.
    """

    smallest: float
    quantile: float
    silent: int


def measure(backend: Backend, label_smoothing: float) -> dict[str, Saliency]:
    """`magnitude` |θ|, `gradient` |g| and `taylor` |g θ|, g being the mean over the whole training part."""
    weights, gradients, masks = backend.tensors(), backend.loss_gradient(label_smoothing), backend.masks()
    theta, g = (
        np.concatenate([values[name][mask] for name, mask in masks.items()]).astype(np.float64)
        for values in (weights, gradients)
    )
    return dict(zip(MEASURES, (_of(theta), _of(g), _of(g * theta)), strict=True))


def _of(values: NDArray[np.float64]) -> Saliency:
    heard = np.abs(values[values != 0])
    if not len(heard):
        return Saliency(math.nan, math.nan, len(values))
    return Saliency(float(heard.min()), float(np.quantile(heard, LOW_QUANTILE)), len(values) - len(heard))
