"""A fitted pruning law as tables, sentences and a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hyperflux.errors import InputError
from hyperflux.law.fit import Interval, LawComparison, PruningLaw, compare_degrees
from hyperflux.report.axes import label_log_axis, log_limits
from hyperflux.report.style import COLOURS, figure, plain_settings, png, title_text
from hyperflux.schedules.feasibility import require_fraction

HEADINGS = ("", "linear", "quadratic")
LEVEL = 0.95
"""Of every interval that is shown."""
MARGIN = 1.5
"""The plot shows pressures up to this factor beyond those measured."""
CURVE_POINTS = 200


@dataclass(frozen=True)
class Study:
    """Measured points, both laws fitted to them, and the sparsities to find a pressure for. All fractions."""

    pressure: Sequence[float]
    density: Sequence[float]
    sparsities: Sequence[float]
    laws: LawComparison

    @classmethod
    def of(cls, pressure: Sequence[float], density: Sequence[float], sparsities: Sequence[float]) -> Study:
        """Fit the points. Raises InputError if they determine no law, or if a sparsity is not a fraction."""
        for sparsity in sparsities:
            require_fraction(sparsity)
        return cls(pressure, density, sparsities, compare_degrees(pressure, density))

    @property
    def outliers(self) -> tuple[int, ...]:
        """Indices of the points left out of both fits."""
        return self.laws.quadratic.outliers

    def fits(self) -> list[tuple[str, ...]]:
        """A row per figure, in the order of `HEADINGS`; constants with their intervals."""
        columns = (_figures(self.laws.linear), _figures(self.laws.quadratic))
        return [(name, *(column[name] for column in columns)) for name in columns[0]]

    def sentences(self) -> list[str]:
        """A line for the choice between the laws, one per point left out, one per sparsity."""
        laws, chosen = self.laws, self.laws.preferred
        name = "quadratic" if chosen.degree == 2 else "linear"
        lines = [f"alpha1 differs from 0 with p = {laws.p_value:.2g}; pressures are by the {name} law (lower AICc)"]
        for index in self.outliers:
            lines.append(
                f"left out of both fits: pressure {self.pressure[index]:.4g}, density {self.density[index]:.3g}"
            )
        return lines + [self._answer(sparsity) for sparsity in self.sparsities]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; None for what is infinite or unknown."""
        return {
            "linear": _plain(self.laws.linear),
            "quadratic": _plain(self.laws.quadratic),
            "p_value": self.laws.p_value,
            "preferred": "quadratic" if self.laws.preferred.degree == 2 else "linear",
            "left_out": [{"pressure": self.pressure[i], "density": self.density[i]} for i in self.outliers],
            "level": LEVEL,
            "pressures": [self._asked(sparsity) for sparsity in self.sparsities],
        }

    @np.errstate(all="ignore")
    @plain_settings()
    def plot(self, title: str, others: Sequence[tuple[float, float]] = ()) -> bytes:
        """Plot the points, both laws and the band of the chosen one, as a PNG. `others` were never fitted."""
        drawn, axes = figure()
        out = np.isin(np.arange(len(self.pressure)), self.outliers)
        pressure, percent = np.asarray(self.pressure), 100 * np.asarray(self.density)
        ends = [*pressure, *(x for x, _ in others)]
        curve = np.geomspace(*log_limits(ends, MARGIN), CURVE_POINTS)
        chosen = self.laws.preferred
        low, high = (100 * end for end in chosen.predict_interval(curve, LEVEL))
        if chosen.freedom:
            axes.fill_between(curve, low, high, color=COLOURS[0], alpha=0.15, linewidth=0, label="95 % of new points")
        for law, name, colour in ((self.laws.linear, "linear", 0), (self.laws.quadratic, "quadratic", 1)):
            style = "-" if law is chosen else "--"
            axes.plot(curve, 100 * law.predict(curve), style, color=COLOURS[colour], linewidth=1.5, label=name)
        axes.plot(pressure[~out], percent[~out], "o", color="black", markersize=5, label="settled density")
        if out.any():
            axes.plot(pressure[out], percent[out], "x", color="#cc0000", markersize=8, label="outlier, left out")
        if points := [(x, 100 * y) for x, y in others if y > 0]:
            axes.plot(*zip(*points, strict=True), "o", color="#888888", fillstyle="none", label="not fitted")
        shown = [100 * y for y in (*self.density, *(y for _, y in others if y > 0))]
        lowest, highest = log_limits(shown, 2)
        axes.set(
            xscale="log", yscale="log", xlabel="pressure γ", ylabel="density (% of the weights left)",
            title=title_text(title), xlim=(curve[0] / 1.2, curve[-1] * 1.2), ylim=(lowest, min(200.0, highest)),
        )  # fmt: skip
        label_log_axis(axes, "x")
        label_log_axis(axes, "y")
        axes.legend(frameon=False)
        return png(drawn)

    def _asked(self, sparsity: float) -> dict[str, Any]:
        law = self.laws.preferred
        try:
            pressure, ends = law.pressure_for(1 - sparsity), law.pressure_interval(1 - sparsity, LEVEL)
        except InputError as error:
            return {"sparsity": sparsity, "pressure": None, "reason": str(error)}
        low, high = law.pressure_range
        found = {"sparsity": sparsity, "pressure": pressure, "interval": _finite(ends)}
        return {**found, "extrapolated": not low <= pressure <= high}

    def _answer(self, sparsity: float) -> str:
        asked, name = self._asked(sparsity), f"{100 * sparsity:.6g} % sparsity"
        if asked["pressure"] is None:
            return f"{name}: no pressure; {asked['reason']}"
        line = f"{name}: pressure {asked['pressure']:.3g} ({100 * LEVEL:g} %: {_between(asked['interval'])})"
        low, high = self.laws.preferred.pressure_range
        return f"{line}, extrapolated beyond {low:.3g} to {high:.3g}" if asked["extrapolated"] else line


def _figures(law: PruningLaw) -> dict[str, str]:
    constants = {name: f"{getattr(law, name):.4g} ({_between(ends)})" for name, ends in law.interval(LEVEL).items()}
    aicc = f"{law.aicc:.1f}" if math.isfinite(law.aicc) else "too few points"
    return {"c": "", "alpha0": "", "alpha1": "0", **constants, "r2": f"{law.r2:.4f}", "AICc": aicc}


def _between(ends: Sequence[float | None]) -> str:
    low, high = (None if end is None or math.isinf(end) or not end else f"{end:.3g}" for end in ends)
    if low is None or high is None:
        return "unknown" if low == high else f"above {low}" if low else f"below {high}"
    return f"{low} to {high}"


def _finite(ends: Interval) -> list[float | None]:
    return [end if math.isfinite(end) else None for end in ends]


def _plain(law: PruningLaw) -> dict[str, Any]:
    return {
        "c": law.c,
        "alpha0": law.alpha0,
        "alpha1": law.alpha1,
        "r2": law.r2,
        "scale": law.scale if law.freedom else None,
        "freedom": law.freedom,
        "aicc": law.aicc if math.isfinite(law.aicc) else None,
        "intervals": {name: _finite(ends) for name, ends in law.interval(LEVEL).items()},
    }
