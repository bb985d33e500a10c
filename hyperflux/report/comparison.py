"""A comparison of methods as a table and as a plot of accuracy against density."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields
from pathlib import Path

from hyperflux.errors import InputError
from hyperflux.gates.budget import kept_share
from hyperflux.io.atomic_write import write_together
from hyperflux.io.safe_read import inside, parse_json, read_text
from hyperflux.report.asked import COUNTED
from hyperflux.report.markup import markdown_table
from hyperflux.report.style import COLOURS, figure, plain_settings, png, title_text
from hyperflux.report.table_files import csv_file, json_file
from hyperflux.runs.compare import Comparison

NAMES = ("comparison.json", "comparison.md", "comparison.csv", "comparison.png")
"""The files of a comparison."""
MAX_BYTES = 1 << 24
"""Most bytes of a comparison.json: that of ten thousand runs has fewer."""
BEFORE_GATES = {"method", "target_sparsity", "seeds", "density", "accuracy", "spread", "dense_accuracy", "seconds"}
"""The keys of a row of comparison.json before gates could hold channels."""


def table(rows: Sequence[Comparison], without: Collection[str] = ()) -> tuple[list[str], list[list[str]]]:
    """Headings and rows as text, shares in percent.

    Args:
        rows: All of the same budget.
        without: Headings of columns to leave out.
    """
    counted = COUNTED[rows[0].budget]
    asked = "density" if counted == "weights" else counted
    columns: dict[str, Callable[[Comparison], str]] = {
        f"{asked} asked for": _asked,
        "method": lambda row: row.method,
        "density": lambda row: f"{row.density:.3%}",
        f"{counted} left": lambda row: f"{row.reached:.3%}",
        "FLOPs": lambda row: _share(row.flops_ratio, ""),
        "parameters": lambda row: _share(row.parameters_ratio, ""),
        "accuracy": lambda row: f"{row.accuracy:.2%}",
        "spread": lambda row: f"±{row.spread * 100:.2f}" if row.seeds > 1 else "",
        "dense": lambda row: _share(row.dense_accuracy, "none"),
        "seeds": lambda row: str(row.seeds),
        "seconds": lambda row: f"{row.seconds:.0f}",
    }
    if rows[0].budget != "latency":  # the other shares have a column of their own
        del columns[f"{counted} left"]
    shown = {name: column for name, column in columns.items() if name not in without}
    return list(shown), [[column(row) for column in shown.values()] for row in rows]


def _asked(row: Comparison) -> str:
    share = float(kept_share(row.budget, row.share))
    return f"{share:.4g}" if share < 0.0001 else f"{share:.2%}"


def _share(value: float | None, unknown: str) -> str:
    return unknown if value is None else f"{value:.2%}"


def markdown(rows: Sequence[Comparison]) -> str:
    """The table in Markdown."""
    return markdown_table(*table(rows), rule="---") + "\n"


def require_own(folder: Path) -> None:
    """Raise InputError if `write` would replace a file that it has not written: one without its comparison.json."""
    there = [name for name in NAMES if os.path.lexists(folder / name)]
    if there and not _is_ours(folder):
        raise InputError(
            f"{folder / there[-1]}: would be replaced, and was not written by hyperflux compare; move it away, or name "
            "another folder with --out"
        )


def _is_ours(folder: Path) -> bool:
    try:
        rows = parse_json(read_text(inside(folder, NAMES[0]), MAX_BYTES))
    except (OSError, ValueError):
        return False
    known = ({field.name for field in fields(Comparison)}, BEFORE_GATES)
    return isinstance(rows, list) and all(isinstance(row, dict) and row.keys() in known for row in rows)


def write(rows: Sequence[Comparison], folder: Path, title: str) -> None:
    """Write `NAMES` into the folder, comparison.json first. Raises WriteError where the disk refuses."""
    tables = [row.to_dict() for row in rows]
    contents = (json_file(tables), markdown(rows).encode(), csv_file(tables), plot(rows, title))
    write_together(folder, dict(zip(NAMES, contents, strict=True)))


@plain_settings()
def plot(rows: Sequence[Comparison], title: str) -> bytes:
    """Plot mean accuracy at the share that is left, with its spread over seeds, a line per method, as a PNG."""
    drawn, axes = figure()
    for colour, method in zip(COLOURS, dict.fromkeys(row.method for row in rows), strict=False):
        points = sorted((row.reached, row.accuracy, row.spread) for row in rows if row.method == method)
        reached, accuracy, spread = zip(*points, strict=True)
        percent = [100 * value for value in accuracy]
        axes.errorbar(
            [100 * value for value in reached],
            percent,
            [100 * value for value in spread],
            color=colour,
            marker="o",
            markersize=4,
            capsize=3,
            label=method,
        )
    dense = [row.dense_accuracy for row in rows if row.dense_accuracy is not None]
    if dense:
        axes.axhline(100 * sum(dense) / len(dense), color="#555555", linewidth=1, linestyle="--", label="dense")
    counted = COUNTED[rows[0].budget]
    label = "density (% of the weights left)" if counted == "weights" else f"{counted} left (%)"
    axes.set(xscale="log", xlabel=label, ylabel="test accuracy (%)", title=title_text(title))
    axes.minorticks_off()
    targets = sorted({round(100 * float(kept_share(row.budget, row.share)), 6) for row in rows})
    axes.set_xticks(targets, [f"{target:g}" for target in targets])
    axes.legend(frameon=False)
    return png(drawn)
