"""Outliers of a regression: rank the points by a robust fit, then test them one after another.

Ordinary least squares bends towards a gross outlier and hides it. Least median of squares (Rousseeuw 1984) does not, as
long as half of the points are right, but it is a poor estimate where all of them are. So it only ranks the points. From
the better half upwards, each next point is tested against ordinary least squares of those before it: the generalised
extreme Studentized deviate test (Rosner 1983), for a regression.
"""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

REJECTION = 1e-3
"""Level of the test: the chance that it rejects a point of clean data."""
MIN_SPARE_POINTS = 4
"""With fewer points than this beyond the number of constants no point is left out."""
EXHAUSTIVE_SUBSETS = 20_000
"""Up to so many elemental subsets all are tried; of more, `RANDOM_SUBSETS` are drawn."""
RANDOM_SUBSETS = 1000
MIN_SCALE = 1e-12
"""Residuals up to this share of the largest value are rounding."""
_RESIDUALS_AT_ONCE = 1_000_000  # in memory


def inlier_mask(terms: Array, values: Array) -> NDArray[np.bool_]:
    """Which points belong to one linear regression.

    Every point does where there are fewer than p + `MIN_SPARE_POINTS`, or where the inliers alone would not determine
    the p constants.

    Args:
        terms: Columns of the regression, (n, p).
        values: What they explain, (n,).

    Returns:
        (n,): False for outliers.

    """
    from scipy.stats import t as student

    count, constants = terms.shape
    inliers = np.ones(count, dtype=bool)
    if count - constants < MIN_SPARE_POINTS:
        return inliers
    basis = np.linalg.qr(terms).Q
    core = (count + constants + 1) // 2
    residual = _least_median_residuals(basis, values, core)
    if residual is None:
        return inliers
    order = np.argsort(np.abs(residual), kind="stable")
    basis, residual = basis[order], residual[order]
    sizes = np.arange(core, count)
    moments = np.cumsum(basis[:, :, None] * basis[:, None, :], axis=0)[sizes - 1]
    if np.linalg.matrix_rank(moments[0], hermitian=True) < constants:
        return inliers
    slopes = np.cumsum(basis * residual[:, None], axis=0)[sizes - 1]
    fits = np.linalg.solve(moments, slopes[:, :, None])[:, :, 0]
    unexplained = np.maximum(np.cumsum(residual**2)[sizes - 1] - (fits * slopes).sum(axis=1), 0)
    scale = np.maximum(np.sqrt(unexplained / (sizes - constants)), MIN_SCALE * np.abs(values).max())
    reach = np.linalg.solve(moments, basis[sizes][:, :, None])[:, :, 0]
    distance = np.abs(residual[sizes] - (fits * basis[sizes]).sum(axis=1))
    deviate = distance / (scale * np.sqrt(1 + (reach * basis[sizes]).sum(axis=1)))
    off = np.flatnonzero(deviate > student.isf(REJECTION / (2 * (sizes + 1)), sizes - constants))
    if len(off):
        inliers[order[sizes[off[0]] :]] = False
    return inliers


def _least_median_residuals(terms: Array, values: Array, core: int) -> Array | None:
    """Residuals (n,) of the fit through p points with the least `core`-th smallest one; None if there is no fit."""
    best, found = math.inf, None
    for chosen in _subsets(*terms.shape):
        square = terms[chosen]
        regular = np.linalg.matrix_rank(square) == terms.shape[1]
        fits = np.linalg.solve(square[regular], values[chosen][regular][:, :, None])[:, :, 0]
        residuals = values - fits @ terms.T
        medians = np.partition(np.abs(residuals), core - 1, axis=1)[:, core - 1]
        if len(medians) and medians.min() < best:
            best, found = medians.min(), residuals[medians.argmin()]
    return found


def _subsets(count: int, size: int) -> list[NDArray[np.intp]]:
    """Index sets of `size` of `count` points, (subsets, size) in blocks: all, or a fixed random choice."""
    if math.comb(count, size) <= EXHAUSTIVE_SUBSETS:
        chosen = np.array(list(combinations(range(count), size)))
    else:
        chosen = np.random.default_rng(0).integers(count, size=(RANDOM_SUBSETS, size))
    return np.array_split(chosen, -(-len(chosen) * count // _RESIDUALS_AT_ONCE))
