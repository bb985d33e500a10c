"""The pruning law and its fit: the density at which a network settles under a constant pressure, with its uncertainty.

Source: E11 of docs/algorithm.md. docs/pruning-law.md explains outliers and intervals.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hyperflux.errors import InputError
from hyperflux.io.ranges import as_integer, as_number, fraction, whole_number
from hyperflux.io.safe_read import shown
from hyperflux.law.outliers import MIN_SCALE, inlier_mask

Array = NDArray[np.float64]
Degree = Literal[1, 2]
Interval = tuple[float, float]

ALMOST_REAL = 1e-6
"""Imaginary part up to which a polynomial's root counts as real."""


@dataclass(frozen=True, eq=False)
class PruningLaw:
    """ln s = ln c − alpha0·ln γ − alpha1·(ln γ)², for a density s, a fraction, and a pressure γ.

    Everything but `outliers` is of the points used.

    Attributes:
        c: Density at γ = 1.
        alpha0: Slope at γ = 1, with its sign turned.
        alpha1: Curvature; 0 in a law of degree 1.
        r2: Share of the variance of ln s that the law explains.
        degree: 1, linear, or 2, quadratic.
        scale: Standard deviation of ln s from the law, at least rounding; infinite if `freedom` is 0.
        freedom: Points beyond the number of constants.
        outliers: Indices of the points left out.
        pressure_range: Least and greatest pressure.
        root: (p, p) for the p constants ln c, alpha0, ...: scale²·root·rootᵀ is their covariance.

    """

    c: float
    alpha0: float
    alpha1: float
    r2: float
    degree: Degree
    scale: float
    freedom: int
    outliers: tuple[int, ...]
    pressure_range: Interval
    root: Array = field(repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "degree", _degree(self.degree))
        for name in ("c", "alpha0", "alpha1", "r2", "scale"):
            if (number := as_number(value := getattr(self, name))) is None:
                raise InputError(f"{name}: {shown(value)} is not a number")
            object.__setattr__(self, name, number)
        object.__setattr__(self, "freedom", whole_number("freedom", self.freedom, 0))
        object.__setattr__(self, "outliers", _indices("outliers", self.outliers))
        ends = _numbers("pressure_range", self.pressure_range)
        if ends.shape != (2,):
            raise InputError(f"pressure_range: {shown(self.pressure_range)} is no pair of pressures")
        object.__setattr__(self, "pressure_range", (float(ends[0]), float(ends[1])))
        shape = _numbers("root", self.root).shape
        if shape != (self.degree + 1, self.degree + 1):
            raise InputError(f"root: shape {shape} is not that of degree {self.degree}, {(self.degree + 1,) * 2}")

    def predict(self, pressure: ArrayLike) -> Array:
        """Density, a fraction, at each pressure; same shape as `pressure`.

        Raises:
            InputError: If a pressure is not a positive number.

        """
        return _exp(self._log_density(_log_pressure(pressure)))

    def predict_interval(self, pressure: ArrayLike, level: float = 0.95) -> tuple[Array, Array]:
        """Interval for the density of one new point at each pressure.

        Args:
            pressure: γ > 0, any shape.
            level: Chance that the new point lies inside.

        Returns:
            Lower and upper ends, each in the shape of `pressure`; 0 and infinity if `freedom` is 0.

        Raises:
            InputError: If a pressure is not a positive number or `level` not between 0 and 1.

        """
        log_pressure = _log_pressure(pressure)
        reach = _terms(log_pressure, self.degree) @ self.root
        half = self._quantile(level) * self.scale * np.sqrt(1 + (reach**2).sum(axis=-1))
        middle = self._log_density(log_pressure)
        return _exp(middle - half), _exp(middle + half)

    def interval(self, level: float = 0.95) -> dict[str, Interval]:
        """Confidence intervals of `c` (through its logarithm), `alpha0` and, in a law of degree 2, `alpha1`.

        Raises:
            InputError: If `level` is not between 0 and 1.

        """
        estimates = np.array([math.log(self.c), self.alpha0, self.alpha1][: self.degree + 1])
        half = self._quantile(level) * self.scale * np.linalg.norm(self.root, axis=1)
        low, high = estimates - half, estimates + half
        low[0], high[0] = _exp(low[0]), _exp(high[0])
        ends = zip(low.tolist(), high.tolist(), strict=True)
        return dict(zip(("c", "alpha0", "alpha1"), ends, strict=False))

    def pressure_for(self, density: float) -> float:
        """The pressure at which the law gives `density`, on the side where density falls with pressure.

        Raises:
            InputError: If `density` is not between 0 and 1, or the law does not pass it on its way down.

        """
        return float(_exp(self._log_pressure_for(density)))

    def pressure_interval(self, density: float, level: float = 0.95) -> Interval:
        """The pressures around `pressure_for` whose `predict_interval` holds `density`.

        Returns:
            Lower and upper end; 0 or infinity where the band never leaves `density` on that side.

        Raises:
            InputError: As `pressure_for`, or if `level` is not between 0 and 1.

        """
        start, quantile = self._log_pressure_for(density), self._quantile(level)
        if math.isinf(quantile):
            return 0.0, math.inf
        # In units in which the law crosses its own band at about ±1, the ends are the nearest roots of
        # (ln s − ln density)² − half². Each list is a polynomial's coefficients, lowest first.
        at_start = _terms(np.array(start), self.degree) @ self.root
        half = quantile * self.scale * math.sqrt(1 + at_start @ at_start)
        unit = half / (self.alpha0 + 2 * self.alpha1 * start)
        distance = np.polynomial.Polynomial([0, -1, -self.alpha1 * unit**2 / half])
        moving = np.array([[0, -unit, -2 * start * unit], [0, 0, -(unit**2)]])[:, : self.degree + 1] @ self.root
        spread = sum(
            (np.polynomial.Polynomial(column) ** 2 for column in np.stack([at_start, *moving]).T),
            start=np.polynomial.Polynomial([1.0]),
        )
        roots = (distance**2 - spread / (1 + at_start @ at_start)).roots()
        crossings = roots.real[np.abs(roots.imag) <= ALMOST_REAL * (1 + np.abs(roots.real))]
        low, high = crossings[crossings < 0].max(initial=-math.inf), crossings[crossings > 0].min(initial=math.inf)
        return float(_exp(start + unit * low)), float(_exp(start + unit * high))

    @property
    def aicc(self) -> float:
        """Akaike's criterion, corrected for few points (AICc); infinite if there are too few. Lower is better."""
        count, parameters = self.freedom + self.degree + 1, self.degree + 2
        if count - parameters - 1 <= 0:
            return math.inf
        correction = 2 * parameters * count / (count - parameters - 1)
        return count * math.log(self.freedom * self.scale**2 / count) + correction

    def _log_density(self, log_pressure: Array) -> Array:
        return np.asarray(math.log(self.c) - self.alpha0 * log_pressure - self.alpha1 * log_pressure**2)

    def _log_pressure_for(self, density: float) -> float:
        density = fraction("density", density)
        a0, a1, gap = self.alpha0, self.alpha1, math.log(self.c) - math.log(density)
        square = a0**2 + 4 * a1 * gap
        if square <= 0 or (a0 <= 0 and a1 == 0):
            turn = float(_exp(math.log(self.c) + a0**2 / (4 * a1))) if a1 else math.nan
            why = f"stays {'below' if a1 > 0 else 'above'} {turn:.3g}" if a1 else "does not fall with pressure"
            raise InputError(f"density: the fitted law {why} and can't give {density:g}; sweep pressures nearer to it")
        return 2 * gap / (a0 + math.sqrt(square)) if a0 > 0 else (-a0 + math.sqrt(square)) / (2 * a1)

    def _quantile(self, level: float) -> float:
        level = fraction("level", level)
        if not self.freedom:
            return math.inf
        from scipy.stats import t as student

        return float(student.ppf((1 + level) / 2, self.freedom))


@dataclass(frozen=True, eq=False)
class LawComparison:
    """The linear and the quadratic law of the same points.

    `p_value` is the chance of an alpha1 at least as far from 0 if the law is linear.
    """

    linear: PruningLaw
    quadratic: PruningLaw
    p_value: float

    @property
    def preferred(self) -> PruningLaw:
        """The law with the lower `aicc`; the linear one if they are equal or both infinite."""
        return self.quadratic if self.quadratic.aicc < self.linear.aicc else self.linear


def fit_pruning_law(
    pressure: Sequence[float] | NDArray[Any], density: Sequence[float] | NDArray[Any], *, degree: Degree = 2
) -> PruningLaw:
    """Fit settled densities against pressures, in logarithms; gross outliers are left out and named (E11).

    Args:
        pressure: γ > 0 of each point, (n,).
        density: The settled density of each point, a fraction in (0, 1), (n,).
        degree: 1 for a linear law, 2 for a quadratic one.

    Returns:
        The law by ordinary least squares of the points that are no outliers.

    Raises:
        InputError: If values are out of range, all densities are the same, or there are fewer different pressures than
            constants (2 for degree 1, 3 for degree 2).

    """
    degree = _degree(degree)
    x, y = _checked(pressure, density, degree)
    return _least_squares(x, y, degree, inlier_mask(_terms(x, degree), y))


def compare_degrees(pressure: Sequence[float] | NDArray[Any], density: Sequence[float] | NDArray[Any]) -> LawComparison:
    """Fit both laws to the points that are no outliers of the quadratic one. Arguments as of `fit_pruning_law`.

    Raises:
        InputError: As `fit_pruning_law` with degree 2.

    """
    from scipy.stats import t as student

    x, y = _checked(pressure, density, 2)
    inliers = inlier_mask(_terms(x, 2), y)
    quadratic, linear = _least_squares(x, y, 2, inliers), _least_squares(x, y, 1, inliers)
    deviation = quadratic.scale * float(np.linalg.norm(quadratic.root[2]))
    chance = 2 * student.sf(abs(quadratic.alpha1) / deviation, quadratic.freedom) if quadratic.freedom else 1.0
    return LawComparison(linear, quadratic, float(chance))


def _checked(pressure: ArrayLike, density: ArrayLike, degree: Degree) -> tuple[Array, Array]:
    """The logarithms of both. Raises InputError where they determine no law."""
    x, y = _numbers("pressure", pressure), _numbers("density", density)
    if x.ndim != 1 or x.shape != y.shape:
        raise InputError(f"pressure and density: shapes {x.shape} and {y.shape}; give two lists of the same length")
    if not (np.isfinite(x).all() and (x > 0).all()):
        raise InputError("pressure: every value has to be a positive number")
    if not ((y > 0) & (y < 1)).all():
        odd = y[~((y > 0) & (y < 1))][0]
        raise InputError(f"density: every value has to lie between 0 and 1 (both excluded), and {odd:g} does not")
    different = len(np.unique(x))
    if different <= degree:
        raise InputError(f"pressure: {different} different values; degree {degree} needs {degree + 1} or more")
    _require_spread(y)
    return np.log(x), np.log(y)


def _require_spread(density: Array) -> None:
    if np.ptp(density) == 0:
        raise InputError(f"density: no spread, every value is {density[0]:g}; sweep a wider range of pressures")


def _least_squares(x: Array, y: Array, degree: Degree, inliers: NDArray[np.bool_]) -> PruningLaw:
    """The law of the inliers by ordinary least squares; `x` is ln γ, `y` ln s."""
    outliers = tuple(np.flatnonzero(~inliers).tolist())
    x, y = x[inliers], y[inliers]
    _require_spread(np.exp(y))
    terms = _terms(x, degree)
    estimate, _, rank, _ = np.linalg.lstsq(terms, y, rcond=None)
    if rank <= degree:
        raise InputError("pressure: the values lie too close together to tell a law; sweep a wider range of pressures")
    if not 0 < (c := float(_exp(estimate[0]))) < math.inf:
        raise InputError(
            f"pressure: all values are too far from 1, where the law would give a density of e^{estimate[0]:.4g}; "
            "measure pressures in another unit"
        )
    unexplained, freedom = float(((y - terms @ estimate) ** 2).sum()), len(y) - degree - 1
    least = MIN_SCALE * float(np.abs(y).max())
    return PruningLaw(
        c=c,
        alpha0=float(estimate[1]),
        alpha1=float(estimate[2]) if degree == 2 else 0.0,
        r2=1 - unexplained / float(((y - y.mean()) ** 2).sum()),
        degree=degree,
        scale=max(math.sqrt(unexplained / freedom), least) if freedom else math.inf,
        freedom=freedom,
        outliers=outliers,
        pressure_range=(float(_exp(x.min())), float(_exp(x.max()))),
        root=np.linalg.inv(np.linalg.qr(terms).R),
    )


def _terms(log_pressure: Array, degree: int) -> Array:
    """(..., degree + 1): the factors of ln c, alpha0 and alpha1."""
    return np.stack([np.ones_like(log_pressure), -log_pressure, -(log_pressure**2)][: degree + 1], axis=-1)


def _log_pressure(pressure: ArrayLike) -> Array:
    values = _numbers("pressure", pressure)
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise InputError("pressure: every value has to be a positive number")
    return np.log(values)


def _degree(value: Any) -> Degree:
    match as_integer(value):
        case 1:
            return 1
        case 2:
            return 2
    raise InputError(f"degree: {shown(value)} is neither 1 (linear) nor 2 (quadratic)")


def _indices(name: str, values: Any) -> tuple[int, ...]:
    """Indices of points. Raises InputError for everything else."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable) or getattr(values, "ndim", 1) == 0:
        raise InputError(f"{name}: {shown(values)} is no list of indices")
    return tuple(whole_number(name, value, 0) for value in values)


def _numbers(name: str, values: Any) -> Array:
    """Real numbers of any shape as float64. Raises InputError for everything else, texts and bools included."""
    try:
        found = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
        if found.dtype.kind not in "iufO" or (found.dtype.kind == "O" and None in found.ravel().tolist()):
            raise TypeError(found.dtype)
        return found.astype(np.float64)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise InputError(f"{name}: {shown(values)} holds other things than real numbers") from error


def _exp(values: ArrayLike) -> Array:
    """The exponential; infinite where it is too large for a float."""
    with np.errstate(over="ignore"):
        return np.asarray(np.exp(values))
