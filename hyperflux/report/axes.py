"""What several plots draw on their axes: logarithmic scales, stages of a run, isolated points, a key per line."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hyperflux.report.style import COLOURS, MUTED, SHADE
from hyperflux.report.svg import Key

Numbers = NDArray[np.float64]
LEAST, MOST = 1e-306, 1e306
"""Ends of a logarithmic axis: further out, what matplotlib computes is infinite or 0."""
MAX_TICKS = 6
"""Most numbers on a logarithmic axis."""
LABEL_WIDTH = 0.15
"""Share of the time axis that a stage needs to have its name above it."""


def log_axis(axes: Any, which: str, values: Iterable[Any]) -> None:
    """Make an axis logarithmic, with limits around the positive ones of `values` and round numbers as ticks.

    Args:
        axes: Matplotlib's axes.
        which: "x" or "y".
        values: Numbers and arrays of them; what is not finite or not positive has no place on the axis.
    """
    found = np.concatenate([np.ravel(np.asarray(part, float)) for part in values])
    found = found[np.isfinite(found) & (found > 0)]
    axes.set(**{f"{which}scale": "log", f"{which}lim": log_limits(found, 1.15)})
    label_log_axis(axes, which)


def log_limits(values: ArrayLike, margin: float) -> tuple[float, float]:
    """Limits of a logarithmic axis by a factor `margin` around positive values, at least threefold apart."""
    found = np.clip(np.asarray(values, float), LEAST, MOST)
    low, high = (float(found.min()) / margin, float(found.max()) * margin) if len(found) else (1.0, 1.0)
    widen = math.sqrt(max(1.0, 3 * low / high))
    return low / widen, high * widen


def label_log_axis(axes: Any, which: str) -> None:
    """Put round numbers on a logarithmic axis, within its present limits."""
    ticks = log_ticks(*getattr(axes, f"get_{which}lim")())
    axis = getattr(axes, f"{which}axis")
    axis.set_ticks(ticks, [tick_label(tick) for tick in ticks])
    axis.set_ticks([], minor=True)


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two positive ones: at most `MAX_TICKS`, and at least two if they are threefold apart."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 1.5, 2, 3, 4, 6, 8), (1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
        if len(ticks) <= MAX_TICKS:
            return ticks
    return ticks[:: -(-len(ticks) // MAX_TICKS)]


def tick_label(value: float) -> str:
    """A number on an axis: "0.05", "2,000", "3·10⁻⁶"."""
    if 1e-3 <= value < 1e5:
        return f"{value:,.6g}"
    mantissa, power = f"{value:.1e}".replace(".0", "").split("e")
    raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{raised}" if mantissa == "1" else f"{mantissa}·10{raised}"


def shade_stages(axes: Any, spans: Sequence[tuple[str, float, float]], named: bool = True) -> None:
    """Shade regrowth, write the stages' names above the axes, and end the time axis where the spans end.

    Args:
        axes: Matplotlib's axes, time on the horizontal one.
        spans: (stage, start, end) in the unit of time.
        named: Whether to write the names.
    """
    low, high = min(start for _, start, _ in spans), max(end for *_, end in spans)
    axes.set_xlim(low, high if high > low else low + 1)
    axes.locator_params(axis="x", nbins=6)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    for name, start, end in spans:
        if name == "regrowth" and end > start:
            axes.axvspan(start, end, color=SHADE, linewidth=0, zorder=0)
        if named and end - start >= LABEL_WIDTH * (high - low) > 0:
            middle = (start + end) / 2
            axes.text(middle, 1.02, name, transform=axes.get_xaxis_transform(), ha="center", color=MUTED, fontsize=9)


def positive(values: Numbers) -> Numbers:
    """The values, NaN where a logarithmic axis has no place for them."""
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)


def isolated_points(values: Numbers) -> dict[str, Any]:
    """Settings of a line that mark every point between two gaps, which the line alone does not show."""
    gaps = np.concatenate([[True], ~np.isfinite(values), [True]])
    alone = np.flatnonzero(gaps[:-2] & gaps[2:] & ~gaps[1:-1])
    return {"marker": ".", "markevery": alone.tolist()} if len(alone) else {}


def line_keys(labels: Sequence[str]) -> list[Key]:
    """A key per line, in the looks of `style.line_look`; none for a single line."""
    if len(labels) == 1:
        return []
    kinds = ("line", "dashed", "dotted", "dashed")
    turns = (divmod(number, len(COLOURS)) for number in range(len(labels)))
    return [Key(label, COLOURS[i], kinds[turn % len(kinds)]) for label, (turn, i) in zip(labels, turns, strict=True)]
