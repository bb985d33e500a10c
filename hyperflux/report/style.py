"""How plots look: one place for matplotlib's settings and colours."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hyperflux.report.formatting import shortened

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Okabe and Ito's colours, which colour-blind people can distinguish."""
DARK_COLOURS = ("#4ba6e6", "#f5843c", "#2fc99d", "#e6a1c7", "#9bd6f7", "#f5b83d")
"""The same, lighter, for a dark page."""
PRESENT, PRUNED = COLOURS[:2]
"""Colours of present and of pruned weights, on every plot of one run."""
INK = "#1b1b1c"
MUTED = "#6a6a6b"
GRID = "#dededf"
SHADE = "#f1f1f3"
TITLE_LENGTH = 60
"""Characters of a plot's title."""
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
"""Kinds of lines, for when colours run out."""
VARIABLES = {colour: f"series-{number}" for number, colour in enumerate(COLOURS)} | {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    SHADE: "shade",
}
"""The CSS variable that stands for a colour on a page, so that dark mode can change it."""


@contextmanager
def plain_settings() -> Iterator[None]:
    """Matplotlib's own settings, whatever the user's: text is text, neither mathematics between dollars nor TeX.

    Every plot is drawn and saved within it, as a context or as a decorator.
    """
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams["text.parse_math"] = False
        yield


def title_text(name: str) -> str:
    """A user's name as the title of a plot: short, and of characters that the font has."""
    return shortened(name, TITLE_LENGTH)


def figure(width: float = 7.0, height: float = 4.2, rows: int = 1) -> tuple[Any, Any]:
    """A matplotlib figure in inches, with `rows` axes above each other that share their horizontal axis."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(width, height), layout="constrained")
    axes = drawn.subplots(rows, 1, sharex=True)
    for axis in [axes] if rows == 1 else axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(True, color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
    return drawn, axes


def save(drawn: Any, path: Path) -> None:
    """Write a figure as PNG."""
    drawn.savefig(path, dpi=150)


def png(drawn: Any) -> bytes:
    """A figure as the content of a PNG file."""
    content = io.BytesIO()
    drawn.savefig(content, dpi=150, format="png")
    return content.getvalue()


def line_look(number: int) -> dict[str, Any]:
    """Colour and dashes of the line with this number."""
    turn = number // len(COLOURS)
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[turn % len(DASHES)]}
