"""Plots of a course: density, pressure, accuracy, losses and changes of mask against time, a line a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperflux.report.formatting import percent
from hyperflux.report.run import ReportedRun
from hyperflux.report.style import COLOURS, INK, MUTED, PRESENT, PRUNED, SHADE, line_look
from hyperflux.report.svg import Key, Plot, blank, drawing, inline, log_axis

Numbers = NDArray[np.float64]
DOTS = {"linestyle": (0, (1, 1.5)), "linewidth": 1.1}
"""Of a second line of the same run."""
LABEL_WIDTH = 0.15
"""Share of an axis that a stage takes at least to have its name above it."""


@dataclass(frozen=True)
class Course:
    """A run against `time`: optimizer steps where every run has telemetry, else epochs of pruning.

    Changes are per 1,000 steps or an epoch, as shares of all weights. Pressure is NaN where there is none.
    """

    time: Numbers
    density: Numbers
    wanted: Numbers
    pressure: Numbers
    pruned: Numbers
    regrown: Numbers
    boundary: float


def courses(runs: Sequence[ReportedRun]) -> tuple[str, list[Course]]:
    """What time is measured in, and every run's course."""
    if all(run.network is not None for run in runs):
        return "optimizer step", [_by_step(run) for run in runs]
    return "epoch of pruning", [_by_epoch(run) for run in runs]


def density(runs: Sequence[ReportedRun]) -> Plot | None:
    """The share of weights left, and the share wanted."""
    unit, lines = courses(runs)
    if not all(len(line.time) for line in lines):
        return None
    with drawing("density"):
        drawn, axes = blank()
        for number, line in enumerate(lines):
            look = line_look(number)
            time = np.concatenate([[0.0], line.time])
            wanted, seen = (np.concatenate([[1.0], part]) for part in (line.wanted, line.density))
            axes.plot(time, _positive(100 * seen), **look, gid="data")
            axes.plot(time, _positive(100 * wanted), **{**look, **DOTS, **({"color": INK} if len(runs) == 1 else {})})
        log_axis(axes, "y", [100.0, *(100 * part for line in lines for part in (line.wanted, line.density))])
        stages(axes, lines)
        axes.set(xlabel=unit, ylabel="weights left (%)")
        svg = inline(drawn, "density")
    ends = "; ".join(f"{run.label}: {percent(run.density)}" for run in runs)
    caption = (
        "How much of the network is left; equal heights are equal factors. Where the line runs along the dots, the run "
        "was on its planned course."
    )
    if len(runs) == 1:
        keys = [Key("weights left", COLOURS[0]), Key("weights wanted", INK, "dotted")]
    else:
        keys = [*run_keys(runs), Key("dots: weights wanted", INK, "dotted")]
    return Plot("density", "Density", caption, f"Weights left in percent against {unit}. At the end {ends}.", svg, keys)


def pressure(runs: Sequence[ReportedRun]) -> Plot | None:
    """γ over time."""
    unit, lines = courses(runs)
    if not any((line.pressure > 0).any() for line in lines):
        return None
    with drawing("pressure"):
        drawn, axes = blank()
        for number, line in enumerate(lines):
            values = _positive(line.pressure)
            if np.isfinite(values).any():
                axes.plot(line.time, values, **line_look(number), **marks_where_alone(values), gid="data")
        log_axis(axes, "y", [line.pressure for line in lines])
        stages(axes, lines)
        axes.set(xlabel=unit, ylabel="pressure γ (loss per unit of t)")
        svg = inline(drawn, "pressure")
    caption = (
        "How hard every weight is pushed towards removal. The run raises it while the network holds on to its weights; "
        "regrowth has none. A gap means that it was 0."
    )
    keys = [key for key, line in zip(run_keys(runs), lines, strict=False) if (line.pressure > 0).any()]
    description = f"Pressure γ on a logarithmic axis against {unit}."
    return Plot("pressure", "Pressure", caption, description, svg, keys)


def accuracy(runs: Sequence[ReportedRun]) -> Plot | None:
    """Test accuracy by epoch, dense training included."""
    if not all(run.run.epochs for run in runs):
        return None
    dense = {run.report["dense_accuracy"] for run in runs} - {None}
    with drawing("accuracy"):
        drawn, axes = blank()
        for number, run in enumerate(runs):
            values = [100 * row.accuracy for row in run.run.epochs]
            axes.plot([row.epoch for row in run.run.epochs], values, **line_look(number), **_dots(values), gid="data")
        if len(dense) == 1:
            axes.axhline(100 * dense.copy().pop(), color=MUTED, linewidth=1, linestyle="--")
        low, high = _accuracies(runs)
        axes.set(ylim=(low - 0.08 * (high - low) - 0.1, high + 0.08 * (high - low) + 0.1))
        _epoch_stages(axes, runs)
        axes.set(xlabel="epoch", ylabel="test accuracy (%)")
        svg = inline(drawn, "accuracy")
    caption = "Accuracy on test data after every epoch, of the network as it was pruned at that moment."
    if any(100 * row.accuracy < low for run in runs for row in run.run.epochs):
        caption += " The first epochs of dense training lie below the axis."
    keys = run_keys(runs)
    if len(dense) == 1:
        keys = [*(keys or [Key("test accuracy", COLOURS[0])]), Key("the dense network", MUTED, "dashed")]
    ends = "; ".join(f"{run.label}: {100 * run.report['final_accuracy']:.2f} %" for run in runs)
    return Plot("accuracy", "Accuracy", caption, f"Test accuracy in percent by epoch. At the end {ends}.", svg, keys)


def losses(runs: Sequence[ReportedRun]) -> Plot | None:
    """Loss of training and test data by epoch, of one run."""
    rows = runs[0].run.epochs
    values = {name: _positive(np.array([getattr(row, name) for row in rows])) for name in ("train_loss", "test_loss")}
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
        "Lower is better. Training smooths its labels, which lifts its loss: compare each line with itself. Test loss "
        "that rises while training loss falls means overfitting."
    )
    keys = [Key("training data", COLOURS[0]), Key("test data", COLOURS[1])]
    return Plot("losses", "Losses", caption, "Loss on training and on test data by epoch.", svg, keys)


def changes(runs: Sequence[ReportedRun]) -> Plot | None:
    """How fast weights are pruned and come back."""
    unit, lines = courses(runs)
    if not any((line.pruned > 0).any() for line in lines):
        return None
    shown: list[Numbers] = []
    with drawing("changes"):
        drawn, axes = blank()
        for number, line in enumerate(lines):
            parts = [(line.pruned, {"color": PRUNED}), (line.regrown, {"color": PRESENT})]
            if len(runs) > 1:
                parts = [(line.pruned + line.regrown, line_look(number))]
            for part, look in parts:
                values = _positive(100 * part)
                shown.append(values)
                if np.isfinite(values).any():
                    axes.plot(line.time, values, **look, **marks_where_alone(values), gid="data")
        log_axis(axes, "y", shown)
        stages(axes, lines)
        span = "per 1,000 steps" if unit == "optimizer step" else "an epoch"
        axes.set(xlabel=unit, ylabel=f"changes {span} (%)")
        svg = inline(drawn, "changes")
    caption = (
        "How often weights are pruned and pruned ones come back, in percent of all weights; one weight can count many "
        "times. Where a line stops, the mask stands still."
    )
    keys = run_keys(runs)
    if len(runs) == 1:
        keys = [Key("pruned", PRUNED), Key("came back", PRESENT)]
        caption += " Lines that lie together mean exchange: as many come as go."
    return Plot("changes", "Weights pruned and regrown", caption, f"Changes of mask against {unit}.", svg, keys)


def _accuracies(runs: Sequence[ReportedRun]) -> tuple[float, float]:
    """The lowest and highest accuracy in percent; dense training only counts for the highest."""
    rows = [row for run in runs for row in run.run.epochs]
    while_pruning = [row.accuracy for row in rows if row.stage != "dense"] or [row.accuracy for row in rows]
    dense = [run.report["dense_accuracy"] for run in runs if run.report["dense_accuracy"] is not None]
    return 100 * min(while_pruning + dense), 100 * max([row.accuracy for row in rows] + dense)


def run_keys(runs: Sequence[ReportedRun]) -> list[Key]:
    """A key for every run; none where there is only one."""
    if len(runs) == 1:
        return []
    kinds = ("line", "dashed", "dotted", "dashed")
    turns = (divmod(number, len(COLOURS)) for number in range(len(runs)))
    return [Key(run.label, COLOURS[i], kinds[turn % len(kinds)]) for run, (turn, i) in zip(runs, turns, strict=True)]


def stages(axes: Any, lines: Sequence[Course]) -> None:
    """Shade regrowth and name both stages, where all runs have the same."""
    bounds = [(line.boundary, float(line.time[-1])) for line in lines if len(line.time)]
    if len(set(bounds)) == 1:
        boundary, end = bounds[0]
        shade(axes, [("pruning", 0, boundary), ("regrowth", boundary, end)])
    else:
        shade(axes, [("", 0, max(end for _, end in bounds))])


def shade(axes: Any, spans: Sequence[tuple[str, float, float]], named: bool = True) -> None:
    """Regrowth on a shade, and the stages' names above the axes. The spans become the whole axis."""
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


def _epoch_stages(axes: Any, runs: Sequence[ReportedRun]) -> None:
    spans = [_spans(run) for run in runs]
    if all(span == spans[0] for span in spans):
        shade(axes, spans[0])


def _spans(run: ReportedRun) -> list[tuple[str, float, float]]:
    """(stage, start, end) in epochs, each from the end of the one before."""
    found: dict[str, int] = {}
    for row in run.run.epochs:
        found[row.stage] = row.epoch
    ends = [run.run.epochs[0].epoch - 0.5, *(last + 0.5 for last in found.values())]
    return [(name, start, end) for name, (start, end) in zip(found, pairwise(ends), strict=True)]


def _by_step(run: ReportedRun) -> Course:
    rows = run.network
    assert rows is not None
    lengths = np.diff(rows["step"], prepend=0) * rows["total"] / 1000
    return Course(
        time=rows["step"].astype(float),
        density=rows["surviving"] / rows["total"],
        wanted=rows["wanted"],
        pressure=rows["pressure"],
        pruned=rows["pruned"] / np.maximum(lengths, 1e-9),
        regrown=rows["regrown"] / np.maximum(lengths, 1e-9),
        boundary=float(run.boundary),
    )


def _by_epoch(run: ReportedRun) -> Course:
    rows, total = run.pruning_rows, run.report["total_weights"]
    return Course(
        time=np.arange(1.0, len(rows) + 1),
        density=np.array([row.density for row in rows]),
        wanted=np.array([row.wanted for row in rows]),
        pressure=np.array([row.pressure for row in rows]),
        pruned=np.array([np.nan if row.pruned is None else row.pruned / total for row in rows]),
        regrown=np.array([np.nan if row.regrown is None else row.regrown / total for row in rows]),
        boundary=float(sum(row.stage == "pruning" for row in rows)),
    )


def _positive(values: Numbers) -> Numbers:
    """NaN where a logarithmic axis has no place."""
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)


def marks_where_alone(values: Numbers) -> dict[str, Any]:
    """A dot on every point between two gaps, which no line shows."""
    gaps = np.concatenate([[True], ~np.isfinite(values), [True]])
    alone = np.flatnonzero(gaps[:-2] & gaps[2:] & ~gaps[1:-1])
    return {"marker": ".", "markevery": alone.tolist()} if len(alone) else {}


def _dots(values: Any) -> dict[str, Any]:
    """Dots where a line has few points."""
    return {"marker": "."} if len(values) <= 3 else {}
