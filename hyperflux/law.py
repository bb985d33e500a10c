"""The pruning law: the density at which a network settles under a constant pressure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hyperflux.errors import InputError


@dataclass(frozen=True)
class PruningLaw:
    """ln s = ln c − alpha0·ln γ − alpha1·(ln γ)², with the fit's r2 (share of the variance of ln s explained)."""

    c: float
    alpha0: float
    alpha1: float
    r2: float

    def predict(self, pressure: ArrayLike) -> NDArray[np.float64]:
        """Density, a fraction, at each pressure γ > 0; same shape as `pressure`."""
        log_pressure = np.log(np.asarray(pressure, dtype=np.float64))
        return np.asarray(self.c * np.exp(-self.alpha0 * log_pressure - self.alpha1 * log_pressure**2))


def fit_pruning_law(pressure: Sequence[float] | NDArray[Any], density: Sequence[float] | NDArray[Any]) -> PruningLaw:
    """Least-squares fit of settled densities against pressures, in logarithms (E11).

    Both are one-dimensional, of the same length: pressures γ > 0, densities s in (0, 1). Raises InputError for other
    values, and where fewer than three different pressures leave the three constants undetermined.
    """
    x, y = np.asarray(pressure, dtype=np.float64), np.asarray(density, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise InputError(f"pressure and density: shapes {x.shape} and {y.shape}; give two lists of the same length")
    if not (np.isfinite(x).all() and (x > 0).all()):
        raise InputError("pressure: every value has to be a positive number")
    if not ((y > 0) & (y < 1)).all():
        raise InputError("density: every value has to lie between 0 and 1 (both excluded)")
    if len(np.unique(x)) < 3:
        raise InputError(f"pressure: {len(np.unique(x))} different values; the law needs at least 3")
    log_x, log_y = np.log(x), np.log(y)
    terms = np.stack([np.ones_like(log_x), -log_x, -(log_x**2)], axis=1)
    (log_c, alpha0, alpha1), *_ = np.linalg.lstsq(terms, log_y)
    residual = log_y - terms @ np.array([log_c, alpha0, alpha1])
    spread = ((log_y - log_y.mean()) ** 2).sum()
    r2 = 1 - (residual**2).sum() / spread if spread > 0 else 1.0
    return PruningLaw(float(np.exp(log_c)), float(alpha0), float(alpha1), float(r2))
