"""A run against time: by optimizer step where telemetry has recorded them, else by epoch of pruning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hyperflux.report.axes import Numbers, shade_stages
from hyperflux.report.run import MAX_POINTS, ReportedRun, few_of


@dataclass(frozen=True)
class Timeline:
    """The course of a run; every array has one entry per point in time.

    Attributes:
        time: Optimizer steps, or epochs of pruning.
        density: Share of the gates that are open; by epoch and with gates of channels, of what the budget counts.
        target_density: The density that the run aimed at.
        pressure: γ; NaN where telemetry has none.
        pruned: Prunings per 1,000 steps or per epoch, as a share of all gates.
        regrown: Regrowths likewise.
        pruning_end: When the pruning stage ends and regrowth begins.
    """

    time: Numbers
    density: Numbers
    target_density: Numbers
    pressure: Numbers
    pruned: Numbers
    regrown: Numbers
    pruning_end: float


def timelines(runs: Sequence[ReportedRun]) -> tuple[str, list[Timeline]]:
    """The unit of time that all runs can be drawn in, as a label of an axis, and the timeline of each."""
    if all(run.network is not None for run in runs):
        return "optimizer step", [_by_step(run) for run in runs]
    return "epoch of pruning", [_by_epoch(run) for run in runs]


def budget_timelines(runs: Sequence[ReportedRun]) -> tuple[str, list[Timeline]]:
    """As `timelines`, but densities are shares of what the budgets count, which telemetry of channels does not have."""
    if any(run.asked.of_channels for run in runs):
        return "epoch of pruning", [_by_epoch(run) for run in runs]
    return timelines(runs)


def shade_common_stages(axes: Any, lines: Sequence[Timeline]) -> None:
    """Shade and name the stages if they are the same in all runs."""
    bounds = [(line.pruning_end, float(line.time[-1])) for line in lines if len(line.time)]
    if len(set(bounds)) == 1:
        pruning_end, end = bounds[0]
        shade_stages(axes, [("pruning", 0, pruning_end), ("regrowth", pruning_end, end)])
    else:
        shade_stages(axes, [("", 0, max(end for _, end in bounds))])


def _by_step(run: ReportedRun) -> Timeline:
    rows = run.network
    assert rows is not None
    lengths = np.diff(rows["step"], prepend=0) * rows["total"] / 1000
    return Timeline(
        time=rows["step"].astype(float),
        density=rows["surviving"] / rows["total"],
        target_density=rows["wanted"],
        pressure=rows["pressure"],
        pruned=rows["pruned"] / np.maximum(lengths, 1e-9),
        regrown=rows["regrown"] / np.maximum(lengths, 1e-9),
        pruning_end=float(run.last_pruning_step),
    )


def _by_epoch(run: ReportedRun) -> Timeline:
    rows, total = run.pruning_epochs, run.gates
    shown = few_of(np.arange(len(rows)), MAX_POINTS)
    drawn = [rows[place] for place in shown]
    return Timeline(
        time=shown + 1.0,
        density=np.array([row.density for row in drawn]),
        target_density=np.array([row.wanted for row in drawn]),
        pressure=np.array([row.pressure for row in drawn]),
        pruned=np.array([np.nan if row.pruned is None else row.pruned / total for row in drawn]),
        regrown=np.array([np.nan if row.regrown is None else row.regrown / total for row in drawn]),
        pruning_end=float(sum(row.stage == "pruning" for row in rows)),
    )
