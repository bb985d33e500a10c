"""Plots of density by layer: over time for one run, at the end of several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hyperflux.report.axes import line_keys, log_axis, log_ticks, shade_stages, tick_label
from hyperflux.report.formatting import shortened
from hyperflux.report.run import ReportedRun, common_layers
from hyperflux.report.style import COLOURS, GRID, INK, PRESENT, line_look
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
MAX_COUNTS = 40
"""Layers whose channels are told in numbers beside the bars."""
NAME_LENGTH = 20
"""Characters of a layer's name next to a plot."""


def plot_layer_density(runs: Sequence[ReportedRun]) -> Plot | None:
    """Share of the open gates of every layer over time, of one run."""
    tables = runs[0].telemetry
    if len(runs) > 1 or tables is None:
        return None
    names, _ = layer_numbers(tables["layers"])
    return _lines(runs[0], names) if len(names) <= MAX_LINES else _heat_map(runs[0], names)


def plot_final_density(runs: Sequence[ReportedRun]) -> Plot | None:
    """Density of every layer at the end, a dot per run."""
    found = [{x.name: 100 * x.surviving / x.total for x in layers} for layers in common_layers(runs)]
    things = "channels" if all(run.asked.of_channels for run in runs) else "weights"
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
        axes.set(xlabel=f"{things} left (%)", ylim=(len(names) - 0.5, -0.5))
        svg = inline(drawn, "final-density")
    title = "Density by layer" if things == "weights" else "Channels left by layer"
    caption = f"{things.capitalize()} left in each layer, the first on top. No dot means that no {things} are left."
    description = "Share left in percent at the end, by layer and run."
    keys = [
        Key(key.label, key.colour, "●■▲◆"[i // len(COLOURS) % 4])
        for i, key in enumerate(line_keys([run.label for run in runs]))
    ]
    return Plot("final-density", title, caption, description, svg, keys)


def plot_channels(runs: Sequence[ReportedRun]) -> Plot | None:
    """Channels left in each layer, of all that the dense network has, of one run with gates of channels."""
    layers = runs[0].outcome.channels
    if len(runs) > 1 or not layers:
        return None
    with drawing("channels"):
        drawn, axes = blank(_height(len(layers), 0.16))
        places = range(len(layers))
        axes.barh(places, [layer.total for layer in layers], 0.7, color=GRID)
        for bar in axes.barh(places, [layer.surviving for layer in layers], 0.7, color=PRESENT):
            bar.set_gid("data")
        if len(layers) <= MAX_COUNTS:
            for place, layer in zip(places, layers, strict=True):
                label = f" {layer.surviving:,} of {layer.total:,}"
                axes.text(layer.total, place, label, va="center", fontsize=8, color=INK)
        most = max(layer.total for layer in layers)
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
        _name_rows(axes, [layer.name for layer in layers], 0.16)
        axes.set(xlabel="channels", xlim=(0, 1.25 * most), ylim=(len(layers) - 0.5, -0.5))
        svg = inline(drawn, "channels")
    caption = (
        "The channels that each layer makes, the first layer on top: all of the dense network, and those that are "
        "left. No layer was given a share."
    )
    keys = [Key("left", PRESENT, "band"), Key("removed", GRID, "band")]
    return Plot("channels", "Channels left by layer", caption, "Channels in all and left, by layer.", svg, keys)


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
        axes.set(xlabel="optimizer step", ylabel=f"{run.noun}s left (%)")
        svg = inline(drawn, "layers")
    caption = (
        f"Pruning is global: {_shared_budget(run)} Where a line ends early, the layer has lost its last {run.noun}."
    )
    description = f"{run.noun.capitalize()}s left in percent by layer, against step."
    return Plot("layers", _over_time(run), caption, description, svg, keys)


def _shared_budget(run: ReportedRun) -> str:
    return (
        f"all layers share one budget of {run.asked.counted}, and those with the most important {run.noun}s keep most."
    )


def _over_time(run: ReportedRun) -> str:
    """The title of the plot of layers over time."""
    return "Channels by layer over time" if run.asked.of_channels else "Density by layer"


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
        f"One row per layer, the first on top. Yellow is full, dark blue nearly empty, blank has no {run.noun}s left. "
        f"Pruning is global: {_shared_budget(run)}"
    )
    description = f"{run.noun.capitalize()}s left in percent, by layer and step."
    return Plot("layers", _over_time(run), caption, description, svg)


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
