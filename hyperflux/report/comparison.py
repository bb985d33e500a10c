"""A comparison of methods as a table and as a plot of accuracy against density."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hyperflux.io.atomic_write import write_together
from hyperflux.report.markup import markdown_table
from hyperflux.report.style import COLOURS, figure, plain_settings, png, title_text
from hyperflux.report.table_files import csv_file, json_file
from hyperflux.runs.compare import Comparison

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


def write(rows: Sequence[Comparison], folder: Path, title: str) -> None:
    """Write `comparison.md`, `.json`, `.csv` and `.png` into the folder. Raises WriteError where the disk refuses."""
    tables = [row.to_dict() for row in rows]
    contents = (markdown(rows).encode(), json_file(tables), csv_file(tables), plot(rows, title))
    endings = ("md", "json", "csv", "png")
    write_together(folder, {f"comparison.{end}": content for end, content in zip(endings, contents, strict=True)})


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
