"""A pressure sweep as files and plots: law.csv, saliencies.csv, law.json, law.png and saliencies.png of a folder."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hyperflux.io.atomic_write import write_together
from hyperflux.law.saliency import LOW_QUANTILE, MEASURES
from hyperflux.law.sweep import SweepRow, SweepSettings
from hyperflux.report.axes import label_log_axis
from hyperflux.report.law import Study
from hyperflux.report.style import COLOURS, figure, plain_settings, png, title_text
from hyperflux.report.table_files import csv_file, json_file
from hyperflux.spec import KAPPA

HEADINGS = ("method", "pressure", "density", "left", "epochs", "accuracy", "")
SYMBOLS = {"magnitude": "|θ|", "gradient": "|g|", "taylor": "|gθ|"}


def study(rows: Sequence[SweepRow], sparsities: Sequence[float]) -> Study:
    """Fit the law to the rows of Hyperflux that have no fault. Raises InputError if they determine none."""
    good = fitted(rows)
    return Study.of([row.pressure for row in good], [row.density for row in good], sparsities)


def fitted(rows: Sequence[SweepRow]) -> list[SweepRow]:
    """The rows that a law is fitted to."""
    return [row for row in rows if row.method == "hyperflux" and not row.fault]


def left_out(rows: Sequence[SweepRow]) -> list[str]:
    """A line for each row of Hyperflux that is not fitted."""
    faulty = [row for row in rows if row.method == "hyperflux" and row.fault]
    return [f"not fitted: pressure {row.pressure:.4g}, density {row.density:.3g}: {row.fault}" for row in faulty]


def cells(row: SweepRow) -> tuple[str, ...]:
    """A row as text, in the order of `HEADINGS`."""
    return (
        row.method,
        f"{row.pressure:.4g}" if row.method == "hyperflux" else "",
        f"{row.density:.3%}",
        f"{row.surviving:,}",
        str(row.epochs),
        f"{row.accuracy:.2%}",
        (row.fault or "") if row.method == "hyperflux" else "",
    )


def write_rows(rows: Sequence[SweepRow], folder: Path) -> None:
    """Write `law.csv` and `saliencies.csv` of what has been measured so far. Raises WriteError if the disk refuses."""
    write_together(folder, _tables(rows, ()))


def _tables(rows: Sequence[SweepRow], outliers: Collection[float]) -> dict[str, bytes]:
    """`law.csv` and `saliencies.csv`; rows whose pressure is one of `outliers` are marked as left out of the fit."""
    names = ("pressure", "density", "surviving", "total", "epochs", "settled", "accuracy")
    table = [
        {
            **{name: getattr(row, name) for name in names},
            "left_out": row.fault or ("outlier" if row.pressure in outliers else ""),
        }
        for row in rows
        if row.method == "hyperflux"
    ]
    return {"law.csv": csv_file(table), "saliencies.csv": csv_file(_saliency_table(rows))}


def write_study(
    rows: Sequence[SweepRow], settings: SweepSettings, found: Study | None, folder: Path, title: str
) -> None:
    """Write all files of a finished sweep. Raises WriteError if the disk refuses."""
    files = _tables(rows, [found.pressure[index] for index in found.outliers] if found else [])
    files["law.json"] = json_file(to_dict(rows, settings, found))
    if any(row.surviving for row in rows):
        files["saliencies.png"] = plot_saliencies(rows, title)
    if found:
        others = [(row.pressure, row.density) for row in rows if row.method == "hyperflux" and row.fault]
        files["law.png"] = found.plot(title, others)
    write_together(folder, files)


def to_dict(rows: Sequence[SweepRow], settings: SweepSettings, found: Study | None) -> dict[str, Any]:
    """Everything as plain values; `law` is None if the rows determine none."""
    return {
        "sweep": asdict(settings),
        "law": found.to_dict() if found else None,
        "rows": [_without_nan({**asdict(row), "fault": row.fault}) for row in rows],
    }


@plain_settings()
def plot_saliencies(rows: Sequence[SweepRow], title: str) -> bytes:
    """Plot the smallest value and a low quantile of each measure against density, as a PNG.

    Every measure has its own axes, every method its colour. The axes of Taylor's measure also show where E3 and E5
    balance, κ|g θ| = γ/N.
    """
    drawn, axes = figure(height=8.4, rows=len(MEASURES))
    present = [row for row in rows if row.surviving]
    for axis, name in zip(axes, MEASURES, strict=True):
        for colour, method in zip(COLOURS, dict.fromkeys(row.method for row in present), strict=False):
            chosen = [row for row in present if row.method == method]
            density = [100 * row.density for row in chosen]
            for part, style in (("quantile", "o-"), ("smallest", "^:")):
                values = [getattr(row.saliencies[name], part) for row in chosen]
                label = f"{method}, " + ("smallest" if part == "smallest" else f"{LOW_QUANTILE:.0%} quantile")
                axis.plot(density, values, style, color=colour, markersize=4, linewidth=1.2, label=label)
        if name == "taylor":
            balance = [
                (100 * row.density, row.pressure / row.total / KAPPA) for row in present if row.method == "hyperflux"
            ]
            if balance:
                axis.plot(*zip(*balance, strict=True), "--", color="#555555", linewidth=1, label="γ/(κN)")
            axis.legend(frameon=False, fontsize=8)
        axis.set(xscale="log", yscale="log", ylabel=f"{name} {SYMBOLS[name]}")
        label_log_axis(axis, "y")
    axes[0].legend(frameon=False, fontsize=8)
    axes[0].set_title(f"{title_text(title)}: saliency of surviving weights")
    axes[-1].set_xlabel("density (% of the weights left)")
    label_log_axis(axes[-1], "x")
    return png(drawn)


def _saliency_table(rows: Sequence[SweepRow]) -> list[dict[str, Any]]:
    return [
        {
            "method": row.method,
            "pressure": row.pressure if row.method == "hyperflux" else "",
            "density": row.density,
            "measure": name,
            **{key: "" if math.isnan(value) else value for key, value in asdict(row.saliencies[name]).items()},
        }
        for row in rows
        for name in MEASURES
    ]


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
