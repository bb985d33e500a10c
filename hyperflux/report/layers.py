"""Plots of density by layer: over time for one run, at the end of several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hyperflux.report.axes import line_keys, log_axis, log_ticks, shade_stages, tick_label
from hyperflux.report.formatting import shortened
from hyperflux.report.run import ReportedRun
from hyperflux.report.style import COLOURS, line_look
from hyperflux.report.svg import SIZE, Key, Plot, blank, drawing, inline
from hyperflux.telemetry.columns import layer_numbers

MAX_LINES = 8
"""Layers that are drawn as lines; more become a heat map."""
NAME_HEIGHT = 0.15
"""Inches of a layer's name next to a plot; where rows are lower, every second, third, ... has one."""
BORDER = 1.0
"""Inches of a plot above and below its rows."""
TALLEST = 12.0
"""Most inches of a plot of many layers."""
NAME_LENGTH = 20
"""Characters of a layer's name next to a plot."""


def plot_layer_density(runs: Sequence[ReportedRun]) -> Plot | None:
    """Density of every layer over time, of one run."""
    tables = runs[0].telemetry
    if len(runs) > 1 or tables is None:
        return None
    names, _ = layer_numbers(tables["layers"])
    return _lines(runs[0], names) if len(names) <= MAX_LINES else _heat_map(runs[0], names)


def plot_final_density(runs: Sequence[ReportedRun]) -> Plot | None:
    """Density of every layer at the end, a dot per run."""
    found = [{x.name: 100 * x.surviving / x.total for x in run.outcome.layers} for run in runs]
    names = list(dict.fromkeys(name for layers in found for name in layers))
    with drawing("final-density"):
        drawn, axes = blank(_height(len(names), 0.16))
        log_axis(axes, "x", [value for layers in found for value in layers.values()])
        for index, layers in enumerate(found):
            places = [place for place, name in enumerate(names) if layers.get(name)]
            offset = 0.5 * ((index + 0.5) / len(found) - 0.5)
            values = [layers[names[place]] for place in places]
            colour, marker = COLOURS[index % len(COLOURS)], "os^D"[index // len(COLOURS) % 4]
            rows = [place + offset for place in places]
            axes.plot(values, rows, linestyle="", marker=marker, markersize=5, color=colour, gid="data")
        _name_rows(axes, names, 0.16)
        axes.set(xlabel="weights left (%)", ylim=(len(names) - 0.5, -0.5))
        svg = inline(drawn, "final-density")
    caption = "Weights left in each layer, the first on top. No dot means that no weights are left."
    description = "Density in percent at the end, by layer and run."
    keys = [
        Key(key.label, key.colour, "●■▲◆"[i // len(COLOURS) % 4])
        for i, key in enumerate(line_keys([run.label for run in runs]))
    ]
    return Plot("final-density", "Density by layer", caption, description, svg, keys)


def _lines(run: ReportedRun, names: Sequence[str]) -> Plot:
    """A line per layer."""
    keys = []
    with drawing("layers"):
        drawn, axes = blank()
        shown = [np.array([100.0])]
        for index, name in enumerate(names):
            rows = run.layer(name)
            assert rows is not None
            look = line_look(index)
            values = np.append(100.0, 100 * rows["surviving"] / rows["total"])
            shown.append(values)
            axes.plot(np.append(0, rows["step"]), np.where(values > 0, values, np.nan), **look, gid="data")
            keys.append(Key(name, look["color"], "line" if look["linestyle"] == "-" else "dashed"))
        log_axis(axes, "y", shown)
        shade_stages(axes, run.stage_steps)
        axes.set(xlabel="optimizer step", ylabel="weights left (%)")
        svg = inline(drawn, "layers")
    caption = (
        "Pruning is global: all layers share one budget of weights, and those with the most important weights keep "
        "most. Where a line ends early, the layer has lost its last weight."
    )
    return Plot("layers", "Density by layer", caption, "Weights left in percent by layer, against step.", svg, keys)


def _heat_map(run: ReportedRun, names: Sequence[str]) -> Plot:
    """A row per layer and a column per moment, as one image."""
    columns, end = [], max(1, run.last_step)
    for name in names:
        rows = run.layer(name)
        assert rows is not None
        moments = np.linspace(0, end, 201)[1:]
        place = np.minimum(np.searchsorted(rows["step"], moments), len(rows) - 1)
        columns.append(100 * rows["surviving"][place] / rows["total"][place])
    values = np.array(columns)
    with drawing("layers"):
        from matplotlib.colors import LogNorm

        height = _height(len(names), 0.11)
        drawn, axes = blank(height)
        least = min(values[values > 0].min(initial=100.0), 99.0)
        shown = np.ma.masked_less_equal(values, 0)
        extent = (0, end, len(names) - 0.5, -0.5)
        norm = LogNorm(least, 100)
        look = {"norm": norm, "cmap": "cividis", "aspect": "auto", "interpolation": "none"}
        axes.imshow(shown, **look, extent=extent, zorder=1, gid="data")
        axes.grid(False)
        _name_rows(axes, names, 0.11)
        shade_stages(axes, run.stage_steps)
        axes.axvline(run.last_pruning_step, color="white", linewidth=0.8, linestyle=":")
        axes.set(xlabel="optimizer step")
        inch = 1 / (height - BORDER)
        scale = axes.inset_axes((0.0, 1 + 0.3 * inch, 1.0, 0.08 * inch))
        gradient = np.geomspace(least, 100, 100)[None]
        scale.imshow(gradient, **look, extent=(0, 1, 0, 1))
        ticks = log_ticks(least, 100)
        places = [float(np.log(tick / least) / np.log(100 / least)) for tick in ticks]
        scale.set_xticks(places, [f"{tick_label(tick)} %" for tick in ticks], fontsize=8)
        scale.set_yticks([])
        scale.grid(False)
        scale.tick_params(axis="x", top=True, bottom=False, labeltop=True, labelbottom=False, length=0)
        svg = inline(drawn, "layers")
    caption = (
        "One row per layer, the first on top. Yellow is full, dark blue nearly empty, blank has no weights left. All "
        "layers share one budget of weights, and those with the most important weights keep most."
    )
    return Plot("layers", "Density by layer", caption, "Weights left in percent, by layer and step.", svg)


def _height(rows: int, row: float) -> float:
    """Inches of a plot whose rows have at least `row` inches, up to `TALLEST`."""
    return min(TALLEST, max(SIZE[1], BORDER + row * rows))


def _name_rows(axes: Any, names: Sequence[str], row: float) -> None:
    """Write the layers' names at the rows of a plot, without an ending that all share."""
    ending = ".weight" if all(name.endswith(".weight") for name in names) else ""
    inches = (_height(len(names), row) - BORDER) / len(names)
    places = range(0, len(names), math.ceil(NAME_HEIGHT / inches))
    shown = [shortened(names[place].removesuffix(ending), NAME_LENGTH) for place in places]
    axes.set_yticks(places, shown, fontsize=8)
