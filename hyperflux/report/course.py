"""Plots of a run's course: density, pressure, accuracy, losses and mask changes against time, a line per run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from hyperflux.report.axes import Numbers, isolated_points, line_keys, log_axis, positive, shade_stages
from hyperflux.report.formatting import percent
from hyperflux.report.run import ReportedRun, common_noun
from hyperflux.report.style import COLOURS, INK, MUTED, PRESENT, PRUNED, line_look
from hyperflux.report.svg import Key, Plot, blank, drawing, inline
from hyperflux.report.timeline import budget_timelines, shade_common_stages, timelines

DOTS = {"linestyle": (0, (1, 1.5)), "linewidth": 1.1}
"""Of a second line of the same run."""


def plot_density(runs: Sequence[ReportedRun]) -> Plot | None:
    """The share left of what the budget counts, and its target, over time."""
    unit, lines = budget_timelines(runs)
    if not all(len(line.time) for line in lines):
        return None
    counts = {run.asked.counted for run in runs}
    counted = counts.pop() if len(counts) == 1 else ""
    with drawing("density"):
        drawn, axes = blank()
        for number, line in enumerate(lines):
            look = line_look(number)
            time = np.concatenate([[0.0], line.time])
            target, reached = (np.concatenate([[1.0], part]) for part in (line.target_density, line.density))
            axes.plot(time, positive(100 * reached), **look, gid="data")
            axes.plot(time, positive(100 * target), **{**look, **DOTS, **({"color": INK} if len(runs) == 1 else {})})
        log_axis(axes, "y", [100.0, *(100 * part for line in lines for part in (line.target_density, line.density))])
        shade_common_stages(axes, lines)
        axes.set(xlabel=unit, ylabel=f"{counted} left (%)".strip())
        svg = inline(drawn, "density")
    ends = "; ".join(f"{run.label}: {percent(run.reached)}" for run in runs)
    caption = (
        f"The share of {counted or 'what each budget counts'} left, on a logarithmic scale. Where the line covers the "
        "dots, the run followed its planned course."
    )
    if len(runs) == 1:
        keys = [Key(f"{counted} left", COLOURS[0]), Key("target", INK, "dotted")]
    else:
        keys = [*line_keys([run.label for run in runs]), Key("dots: target", INK, "dotted")]
    title = "Density" if counted == "weights" else f"{counted or 'share'} left"
    title = title[0].upper() + title[1:]
    description = f"{title} in percent against {unit}. At the end {ends}."
    return Plot("density", title, caption, description, svg, keys)


def plot_pressure(runs: Sequence[ReportedRun]) -> Plot | None:
    """γ over time."""
    unit, lines = timelines(runs)
    if not any((line.pressure > 0).any() for line in lines):
        return None
    with drawing("pressure"):
        drawn, axes = blank()
        for number, line in enumerate(lines):
            values = positive(line.pressure)
            if np.isfinite(values).any():
                axes.plot(line.time, values, **line_look(number), **isolated_points(values), gid="data")
        log_axis(axes, "y", [line.pressure for line in lines])
        shade_common_stages(axes, lines)
        axes.set(xlabel=unit, ylabel="pressure γ (loss per unit of t)")
        svg = inline(drawn, "pressure")
    caption = (
        f"How hard every {common_noun(runs)} is pushed towards removal. It rises while the network loses less than "
        "planned; regrowth has none. Gaps mean 0."
    )
    keys = line_keys([run.label for run in runs])
    keys = [key for key, line in zip(keys, lines, strict=False) if (line.pressure > 0).any()]
    description = f"Pressure γ on a logarithmic axis against {unit}."
    return Plot("pressure", "Pressure", caption, description, svg, keys)


def plot_accuracy(runs: Sequence[ReportedRun]) -> Plot | None:
    """Test accuracy by epoch, dense training included."""
    if not all(run.epochs for run in runs):
        return None
    dense = {run.outcome.dense_accuracy for run in runs if run.outcome.dense_accuracy is not None}
    with drawing("accuracy"):
        drawn, axes = blank()
        for number, run in enumerate(runs):
            values = [100 * row.accuracy for row in run.drawn_epochs]
            axes.plot([row.epoch for row in run.drawn_epochs], values, **line_look(number), **_dots(values), gid="data")
        if len(dense) == 1:
            axes.axhline(100 * next(iter(dense)), color=MUTED, linewidth=1, linestyle="--")
        low, high = _accuracies(runs)
        axes.set(ylim=(low - 0.08 * (high - low) - 0.1, high + 0.08 * (high - low) + 0.1))
        _epoch_stages(axes, runs)
        axes.set(xlabel="epoch", ylabel="test accuracy (%)")
        svg = inline(drawn, "accuracy")
    caption = "Test accuracy after every epoch, of the network with the mask that it had then."
    if any(100 * row.accuracy < low for run in runs for row in run.epochs):
        caption += " The first epochs of dense training are below the range shown."
    keys = line_keys([run.label for run in runs])
    if len(dense) == 1:
        keys = [*(keys or [Key("test accuracy", COLOURS[0])]), Key("dense network", MUTED, "dashed")]
    ends = "; ".join(f"{run.label}: {100 * run.outcome.final_accuracy:.2f} %" for run in runs)
    return Plot("accuracy", "Accuracy", caption, f"Test accuracy in percent by epoch. At the end {ends}.", svg, keys)


def plot_losses(runs: Sequence[ReportedRun]) -> Plot | None:
    """Loss of training and test data by epoch, of one run."""
    rows = runs[0].drawn_epochs
    values = {name: positive(np.array([getattr(row, name) for row in rows])) for name in ("train_loss", "test_loss")}
    if len(runs) > 1 or not all(np.isfinite(part).any() for part in values.values()):
        return None
    with drawing("losses"):
        drawn, axes = blank()
        for number, part in enumerate(values.values()):
            axes.plot([row.epoch for row in rows], part, **line_look(number), **_dots(part), gid="data")
        log_axis(axes, "y", values.values())
        _epoch_stages(axes, runs)
        axes.set(xlabel="epoch", ylabel="cross-entropy (nats)")
        svg = inline(drawn, "losses")
    caption = (
        "Lower is better. Label smoothing raises the training loss, so compare each line only with itself. A test loss "
        "that rises while the training loss falls means overfitting."
    )
    keys = [Key("training data", COLOURS[0]), Key("test data", COLOURS[1])]
    return Plot("losses", "Losses", caption, "Loss on training and on test data by epoch.", svg, keys)


def plot_mask_changes(runs: Sequence[ReportedRun]) -> Plot | None:
    """How fast weights are pruned and come back."""
    unit, lines = timelines(runs)
    if not any((line.pruned > 0).any() for line in lines):
        return None
    shown: list[Numbers] = []
    noun = common_noun(runs)
    with drawing("changes"):
        drawn, axes = blank()
        for number, line in enumerate(lines):
            parts = [(line.pruned, {"color": PRUNED}), (line.regrown, {"color": PRESENT})]
            if len(runs) > 1:
                parts = [(line.pruned + line.regrown, line_look(number))]
            for part, look in parts:
                values = positive(100 * part)
                shown.append(values)
                if np.isfinite(values).any():
                    axes.plot(line.time, values, **look, **isolated_points(values), gid="data")
        log_axis(axes, "y", shown)
        shade_common_stages(axes, lines)
        span = "per 1,000 steps" if unit == "optimizer step" else "per epoch"
        axes.set(xlabel=unit, ylabel=f"flips {span} (%)")
        svg = inline(drawn, "changes")
    caption = (
        f"Prunings and regrowths, in percent of all {noun}s; a {noun} counts every time. Where a line stops, the mask "
        "did not change."
    )
    keys = line_keys([run.label for run in runs])
    if len(runs) == 1:
        keys = [Key("pruned", PRUNED), Key("came back", PRESENT)]
        caption += f" Where the lines meet, as many {noun}s come back as are pruned."
    title = f"{noun.capitalize()}s pruned and regrown"
    return Plot("changes", title, caption, f"Prunings and regrowths against {unit}.", svg, keys)


def _accuracies(runs: Sequence[ReportedRun]) -> tuple[float, float]:
    """The lowest and highest accuracy in percent; dense training only counts for the highest."""
    rows = [row for run in runs for row in run.epochs]
    while_pruning = [row.accuracy for row in rows if row.stage != "dense"] or [row.accuracy for row in rows]
    dense = [run.outcome.dense_accuracy for run in runs if run.outcome.dense_accuracy is not None]
    return 100 * min(while_pruning + dense), 100 * max([row.accuracy for row in rows] + dense)


def _epoch_stages(axes: Any, runs: Sequence[ReportedRun]) -> None:
    spans = [_spans(run) for run in runs]
    if all(span == spans[0] for span in spans):
        shade_stages(axes, spans[0])


def _spans(run: ReportedRun) -> list[tuple[str, float, float]]:
    """(stage, start, end) in epochs, each from the end of the one before."""
    found: dict[str, int] = {}
    for row in run.epochs:
        found[row.stage] = row.epoch
    ends = [run.epochs[0].epoch - 0.5, *(last + 0.5 for last in found.values())]
    return [(name, start, end) for name, (start, end) in zip(found, pairwise(ends), strict=True)]


def _dots(values: Any) -> dict[str, Any]:
    """Dots where a line has few points."""
    return {"marker": "."} if len(values) <= 3 else {}
