"""Plots of why, how often and when the mask changed: flux against pressure, flips per weight, the last changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hyperflux.report.axes import isolated_points, line_keys, log_axis, shade_stages
from hyperflux.report.run import MAX_POINTS, ReportedRun, common_noun, few_of
from hyperflux.report.style import INK, PRESENT, PRUNED, line_look
from hyperflux.report.svg import Key, Plot, blank, drawing, inline
from hyperflux.report.timeline import shade_common_stages, timelines
from hyperflux.telemetry.columns import flux_column


def plot_flux(runs: Sequence[ReportedRun]) -> Plot | None:
    """Quantiles of restoring flux of pruned and of restored gates, against the pressure on each."""
    rows = runs[0].network
    if len(runs) > 1 or rows is None:
        return None
    push = np.where(rows["pressure"] > 0, rows["pressure"] / rows["total"], np.nan)
    pruned = [rows[flux_column("pruned", share)].astype(float) for share in (0.75, 0.95)]
    restored = [rows[flux_column("restored", share)].astype(float) for share in (0.25, 0.5, 0.75)]
    drawn_values = [part for part in (push, pruned[1], restored[2]) if (part > 0).any()]
    if not any((part > 0).any() for part in (pruned[1], restored[1])):
        return None
    with drawing("flux"):
        drawn, axes = blank()
        log_axis(axes, "y", drawn_values)
        low = axes.get_ylim()[0]
        for colour, (lower, line, upper) in ((PRUNED, (pruned[0], pruned[1], pruned[1])), (PRESENT, restored)):
            floor = np.where(lower > low, lower, low)
            shown = np.isfinite(upper) & (upper > low)
            top = np.where(shown, upper, low)
            axes.fill_between(rows["step"], floor, top, where=shown, color=colour, alpha=0.18, linewidth=0)
            shown = np.where(line > low, line, np.nan)
            axes.plot(rows["step"], shown, color=colour, **isolated_points(shown), gid="data")
        axes.plot(rows["step"], push, color=INK, linewidth=2, linestyle="--", **isolated_points(push), gid="data")
        shade_stages(axes, runs[0].stage_steps)
        axes.set(xlabel="optimizer step", ylabel="restoring flux (loss per unit of t)")
        svg = inline(drawn, "flux")
    noun, gone, push_name = runs[0].noun, runs[0].gone, "γ/N, the pressure per weight"
    fates = "pressure pushes every weight down by γ/N. Pruned weights above the dashed line rise, those below it sink."
    if runs[0].asked.of_channels:
        push_name = "γ/J, the mean pressure per channel"
        fates = (
            "pressure pushes every channel down by γ times its share of the price of all. Where the two are equal, a "
            "removed channel neither rises nor sinks."
        )
    caption = (
        f"Restoring flux measures how strongly the loss calls for a {noun}; {fates} Only positive flux is drawn, and "
        "only while the mask can change."
    )
    keys = [
        Key(push_name, INK, "dashed"),
        Key(f"{gone} {noun}s: 75 % to 95 % quantile", PRUNED),
        Key(f"{noun}s that just came back: median and middle half", PRESENT),
    ]
    return Plot("flux", "Flux against pressure", caption, "Restoring flux against optimizer step.", svg, keys)


def plot_flips(runs: Sequence[ReportedRun]) -> Plot | None:
    """How many weights or channels flipped how often."""
    if len(runs) > 1 or runs[0].telemetry is None:
        return None
    table, noun = runs[0].telemetry["flips"], runs[0].noun
    counts = np.bincount(table["flips"], weights=table["weights"])
    groups = _groups(len(counts) - 1)
    odd = np.arange(len(counts)) % 2 == 1
    present, pruned = (
        np.array([np.where(side, counts, 0)[first : last + 1].sum() for first, last in groups]) for side in (~odd, odd)
    )
    names = [f"{first}" if first == last else f"{first}–{last}" for first, last in groups]
    with drawing("flips"):
        drawn, axes = blank()
        log_axis(axes, "y", [present, pruned, [1]])
        low = axes.get_ylim()[0]
        for side, values, colour in ((-0.2, pruned, PRUNED), (0.2, present, PRESENT)):
            shown = values > 0
            places = np.arange(len(groups))[shown] + side
            for bar in axes.bar(places, values[shown] - low, 0.38, bottom=low, color=colour):
                bar.set_gid("data")
        axes.set_xticks(range(len(names)), names, rotation=35 if len(names) > 6 else 0)
        axes.tick_params(axis="x", length=0)
        axes.grid(False, axis="x")
        axes.set(xlabel=f"flips per {noun}", ylabel=f"{noun}s", xlim=(-0.6, len(names) - 0.4))
        svg = inline(drawn, "flips")
    gone, left = runs[0].gone, runs[0].left
    caption = (
        f"0: never {gone}. 1: {gone} once, for good. 2 or more: came back at least once, so that its importance was "
        "measured in several sub-networks."
    )
    keys = [Key(f"{gone} at the end", PRUNED, "band"), Key(f"{left} at the end", PRESENT, "band")]
    description = f"Number of {noun}s by number of flips."
    return Plot("flips", f"How often {noun}s flipped", caption, description, svg, keys)


def plot_settling(runs: Sequence[ReportedRun]) -> Plot | None:
    """Since when weights or channels have been in their final state, present or pruned."""
    if not all(run.telemetry is not None for run in runs):
        return None
    with drawing("settling"):
        drawn, axes = blank()
        for number, run in enumerate(runs):
            tables = run.telemetry
            assert tables is not None
            ages = tables["ages"]
            sides: list[tuple[str, dict[str, Any]]] = [("pruned", {"color": PRUNED}), ("present", {"color": PRESENT})]
            if len(runs) > 1:
                sides = [("present", line_look(number))]
            for side, look in sides:
                if ages[side].any():
                    steps, place = np.unique(ages["step"], return_inverse=True)
                    grown = np.cumsum(np.bincount(place.ravel(), ages[side]))
                    shown = few_of(np.arange(len(steps)), MAX_POINTS)
                    steps, shares = np.append(steps[shown], run.last_step), np.append(grown[shown], grown[-1])
                    shares = shares / grown[-1]
                    axes.plot(steps, 100 * shares, drawstyle="steps-post", **look, gid="data")
        shade_common_stages(axes, timelines(runs)[1])
        axes.set(xlabel="optimizer step", ylabel="in their final state (%)", ylim=(-3, 103))
        svg = inline(drawn, "settling")
    gates = f"{common_noun(runs)}s"
    keys = [Key(f"{gates} {runs[0].gone} at the end", PRUNED), Key(f"{gates} {runs[0].left} at the end", PRESENT)]
    if len(runs) > 1:
        gates, keys = f"remaining {gates}", line_keys([run.label for run in runs])
    caption = (
        f"The share of {gates} that had flipped for the last time by then. A line that reaches 100 % early leaves "
        "time to train the final network; if it still climbs at the end, the run was too short."
    )
    description = f"Share of {gates} in their final state against optimizer step."
    return Plot("settling", "When the mask settled", caption, description, svg, keys)


def _groups(most: int) -> list[tuple[int, int]]:
    """0, 1, then pairs whose length doubles: 2-3, 4-7, 8-15, ..."""
    groups, first = [(0, 0), (1, 1)], 2
    while first <= most:
        groups.append((first, 2 * first - 1))
        first *= 2
    return groups
