"""A comparison of methods as a table and as a plot of accuracy against density."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from hyperflux.errors import InputError
from hyperflux.io.atomic_write import write_together
from hyperflux.io.safe_read import inside, parse_json, read_text
from hyperflux.report.markup import markdown_table
from hyperflux.report.style import COLOURS, figure, plain_settings, png, title_text
from hyperflux.report.table_files import csv_file, json_file
from hyperflux.runs.compare import Comparison

NAMES = ("comparison.json", "comparison.md", "comparison.csv", "comparison.png")
"""The files of a comparison."""
MAX_BYTES = 1 << 24
"""Most bytes of a comparison.json: that of ten thousand runs has fewer."""
HEADINGS = ("density asked for", "method", "density", "accuracy", "spread", "dense", "seeds", "seconds")


def cells(row: Comparison) -> tuple[str, ...]:
    """A row as text, shares in percent, in the order of `HEADINGS`."""
    dense = "none" if row.dense_accuracy is None else f"{row.dense_accuracy:.2%}"
    return (
        f"{1 - row.target_sparsity:.4g}" if row.target_sparsity > 0.9999 else f"{1 - row.target_sparsity:.2%}",
        row.method,
        f"{row.density:.3%}",
        f"{row.accuracy:.2%}",
        f"±{row.spread * 100:.2f}" if row.seeds > 1 else "",
        dense,
        str(row.seeds),
        f"{row.seconds:.0f}",
    )


def markdown(rows: Sequence[Comparison]) -> str:
    """The table in Markdown."""
    return markdown_table(HEADINGS, map(cells, rows), rule="---") + "\n"


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
    known = {field.name for field in fields(Comparison)}
    return isinstance(rows, list) and all(isinstance(row, dict) and row.keys() == known for row in rows)


def write(rows: Sequence[Comparison], folder: Path, title: str) -> None:
    """Write `NAMES` into the folder, comparison.json first. Raises WriteError where the disk refuses."""
    tables = [row.to_dict() for row in rows]
    contents = (json_file(tables), markdown(rows).encode(), csv_file(tables), plot(rows, title))
    write_together(folder, dict(zip(NAMES, contents, strict=True)))


@plain_settings()
def plot(rows: Sequence[Comparison], title: str) -> bytes:
    """Plot mean accuracy at the density reached, with its spread over seeds, a line per method, as a PNG."""
    drawn, axes = figure()
    for colour, method in zip(COLOURS, dict.fromkeys(row.method for row in rows), strict=False):
        points = sorted((row.density, row.accuracy, row.spread) for row in rows if row.method == method)
        density, accuracy, spread = zip(*points, strict=True)
        percent = [100 * value for value in accuracy]
        axes.errorbar(
            [100 * value for value in density],
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
    axes.set(
        xscale="log", xlabel="density (% of the weights left)", ylabel="test accuracy (%)", title=title_text(title)
    )
    axes.minorticks_off()
    targets = sorted({round(100 * (1 - row.target_sparsity), 6) for row in rows})
    axes.set_xticks(targets, [f"{target:g}" for target in targets])
    axes.legend(frameon=False)
    return png(drawn)
