"""Saliencies of surviving weights by three measures: does the smallest follow a pruning law too?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hyperflux.backends.base import Backend

MEASURES = ("magnitude", "gradient", "taylor")
LOW_QUANTILE = 0.01
"""The quantile that is recorded next to the smallest."""


@dataclass(frozen=True)
class Saliency:
    """One measure among the surviving weights: the smallest, the `LOW_QUANTILE`, and how many are silent.

    A weight is silent where its measure is exactly 0. Silent weights are left out of the other two, which are NaN if no
    weight remains. A gradient of 0 over the whole training part belongs to a unit that is never active or leads
    nowhere; it says nothing about the weight.
    """

    smallest: float
    quantile: float
    silent: int


def measure(backend: Backend, label_smoothing: float) -> dict[str, Saliency]:
    """Saliencies of the surviving weights of the whole network, in float64.

    Args:
        backend: The network.
        label_smoothing: Of the loss whose gradient is measured (E7).

    Returns:
        `magnitude` |θ|, `gradient` |g| and `taylor` |g θ|, with g the mean over the whole training part.

    """
    weights, gradients, masks = backend.tensors(), backend.loss_gradient(label_smoothing), backend.masks()
    theta, g = (
        np.concatenate([values[name][mask] for name, mask in masks.items()]).astype(np.float64)
        for values in (weights, gradients)
    )
    return dict(zip(MEASURES, (_of(theta), _of(g), _of(g * theta)), strict=True))


def _of(values: NDArray[np.float64]) -> Saliency:
    nonzero = np.abs(values[values != 0])
    if not len(nonzero):
        return Saliency(math.nan, math.nan, len(values))
    return Saliency(float(nonzero.min()), float(np.quantile(nonzero, LOW_QUANTILE)), len(values) - len(nonzero))
