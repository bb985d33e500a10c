"""Figures as SVG within a page: text stays text, colours become CSS variables, ids start with the figure's name."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from hyperflux.report.style import GRID, INK, MUTED, VARIABLES, plain_settings

SIZE = (4.6, 3.0)
"""Inches: at this width ten-point text can be read on a phone."""


@dataclass(frozen=True)
class Key:
    """What a colour stands for; `kind` is line, dashed, dotted, band or a character."""

    label: str
    colour: str
    kind: str = "line"

    @property
    def is_character(self) -> bool:
        """Whether a character stands for the data, not a line."""
        return len(self.kind) == 1

    @property
    def variable(self) -> str:
        """The CSS variable of the colour."""
        return VARIABLES[self.colour]


@dataclass(frozen=True)
class Plot:
    """A finished plot. `caption` says how to read it, `description` what it shows, for those who can't see it."""

    name: str
    title: str
    caption: str
    description: str
    svg: str
    keys: list[Key] = field(default_factory=list)


@contextmanager
def drawing(name: str) -> Iterator[None]:
    """Use the settings of all plots, whatever the user's own, with text that stays text."""
    import matplotlib

    with plain_settings():
        matplotlib.rcParams.update(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": f"hyperflux {name}",
                "text.color": INK,
                "axes.edgecolor": MUTED,
                "axes.labelcolor": INK,
                "xtick.color": MUTED,
                "ytick.color": MUTED,
                "xtick.labelcolor": INK,
                "ytick.labelcolor": INK,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.grid": True,
                "grid.color": GRID,
                "grid.linewidth": 0.6,
                "axes.axisbelow": True,
                "lines.linewidth": 1.6,
            }
        )
        yield


def blank(height: float = SIZE[1]) -> tuple[Any, Any]:
    """A figure without a background, and its axes; to be called within `drawing`."""
    drawn, (axes,) = stacked(1, height)
    return drawn, axes


def stacked(rows: int, height: float) -> tuple[Any, list[Any]]:
    """A figure without a background, and axes above each other that share their horizontal axis."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(SIZE[0], height), layout="constrained", facecolor="none")
    parts = drawn.subplots(rows, 1, sharex=True, squeeze=False, subplot_kw={"facecolor": "none"})[:, 0].tolist()
    for axes in parts:
        axes.patch.set_gid("frame")
    return drawn, parts


def inline(drawn: Any, name: str) -> str:
    """The figure as an `<svg>` element. What has the gid "data" or "frame" gets it as its class."""
    content = io.StringIO()
    drawn.savefig(content, format="svg", metadata={"Date": None})
    text = content.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"\s*<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text)
    text = re.sub(r' id="(data|frame)(?:_\d+)?"', r' class="\1"', text)
    used = set(re.findall(r'href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text))
    text = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", text)
    text = re.sub(r'( id="|href="#|url\(#)', rf"\1{name}-", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return re.sub(r"\n\s*", "\n", text)
