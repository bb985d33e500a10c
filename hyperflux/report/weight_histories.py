"""A plot of single weights over time: the presence parameter t, with prunings and regrowths marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperflux.report.axes import shade_stages
from hyperflux.report.formatting import shortened
from hyperflux.report.run import MAX_POINTS, ReportedRun, few_of
from hyperflux.report.style import INK, MUTED, PRESENT, PRUNED
from hyperflux.report.svg import Key, Plot, drawing, inline, stacked
from hyperflux.telemetry.columns import Table, layer_numbers

FATES = {"never pruned": 1, "came back and stayed": 2, "came back, pruned in the end": 2, "pruned once, for good": 1}
"""What becomes of weights, and how many of each kind are drawn."""


@dataclass(frozen=True)
class WeightHistory:
    """One weight that telemetry followed.

    Attributes:
        layer: The parameter's name.
        index: Place in the flattened parameter.
        steps: Optimizer steps at which the weight was looked at.
        t: Presence parameter at those steps.
        present: Mask at those steps.
        fate: A key of `FATES`.
    """

    layer: str
    index: int
    steps: NDArray[np.int64]
    t: NDArray[np.floating[Any]]
    present: NDArray[np.bool_]
    fate: str

    @property
    def turns(self) -> NDArray[np.int64]:
        """-1 where the weight is newly pruned, 1 where it is newly present, else 0."""
        present = self.present.astype(np.int64)
        turns: NDArray[np.int64] = present - np.concatenate([present[:1], present[:-1]])
        return turns


def plot_weight_histories(runs: Sequence[ReportedRun]) -> Plot | None:
    """A few weights or channels of each fate, of one run, each on its own axes."""
    if len(runs) > 1 or runs[0].telemetry is None or not runs[0].has_flux:
        return None
    chosen = chosen_histories(runs[0].telemetry["sample"])
    with drawing("weight-histories"):
        drawn, rows = stacked(len(chosen), 0.6 + 0.8 * len(chosen))
        for axes, history in zip(rows, chosen, strict=True):
            _draw(axes, history, history.fate.replace("pruned", runs[0].gone))
            shade_stages(axes, runs[0].stage_steps, named=False)
        rows[-1].set(xlabel="optimizer step")
        drawn.supylabel("presence t", fontsize=10)
        svg = inline(drawn, "weight-histories")
    noun, left, gone = runs[0].noun, runs[0].left, runs[0].gone
    caption = (
        f"Single {noun}s that telemetry followed, one or two of each kind. A {noun} is {left} while t is at least 0, "
        f"and {gone} below; triangles mark the intervals in which it flipped."
    )
    keys = [
        Key(left, PRESENT, "band"),
        Key(gone, PRUNED, "band"),
        Key(f"was {gone}", PRUNED, "▼"),
        Key("came back", PRESENT, "▲"),
    ]
    title = f"Histories of single {noun}s"
    return Plot("weight-histories", title, caption, "Presence parameter against step.", svg, keys)


def _draw(axes: Any, history: WeightHistory, fate: str) -> None:
    few = few_of(np.arange(len(history.t)), MAX_POINTS)
    steps, t = history.steps[few], history.t[few]
    for colour, side in ((PRESENT, t >= 0), (PRUNED, t <= 0)):
        axes.fill_between(steps, 0, t, where=side, interpolate=True, color=colour, alpha=0.35, linewidth=0)
    axes.plot(steps, t, color=INK, linewidth=0.8, gid="data")
    axes.axhline(0, color=MUTED, linewidth=0.8)
    for change, marker in ((-1, "v"), (1, "^")):
        at = few_of(np.flatnonzero(history.turns == change), MAX_POINTS)
        if len(at):
            colour = PRESENT if change > 0 else PRUNED
            axes.plot(history.steps[at], history.t[at], linestyle="", marker=marker, markersize=3.5, color=colour)
    name = f"{shortened(history.layer, 24)} [{history.index}]: {fate}"
    axes.set_title(name, fontsize=9, loc="left", pad=2, color=INK)
    axes.locator_params(axis="y", nbins=3)
    axes.tick_params(axis="y", labelsize=8)


def chosen_histories(sample: Table) -> list[WeightHistory]:
    """Choose as many weights of each fate as `FATES` says, by how often they flipped: neither the most nor the least.

    Weights that came back are chosen from those that were seen pruned at the end of an interval, if there are any.
    """
    names, layers = layer_numbers(sample)
    layers = np.argsort(np.argsort(names))[layers]
    order = np.lexsort((sample["step"], sample["index"], layers))
    new = np.diff(layers[order]).astype(bool) | np.diff(sample["index"][order]).astype(bool)
    starts = np.concatenate([[0], np.flatnonzero(new) + 1])
    ends = np.append(starts[1:], len(order))
    present = sample["present"][order]
    turned = np.add.reduceat(np.append(False, (present[1:] != present[:-1]) & ~new).astype(np.int64), starts)
    stayed, flips = present[ends - 1], sample["flips"][order[ends - 1]]
    members = (stayed & (flips == 0), stayed & (flips != 0), ~stayed & (flips > 1), ~stayed & (flips <= 1))
    chosen = []
    for (fate, number), is_member in zip(FATES.items(), members, strict=True):
        group = np.flatnonzero(is_member)
        group = group[np.argsort(turned[group], kind="stable")]
        if fate.startswith("came back") and (turned[group] >= 2).any():
            group = group[turned[group] >= 2]
        picks = {len(group) * (2 * pick + 1) // (2 * number) for pick in range(number)} if len(group) else set()
        chosen += [_history(sample[order[starts[place] : ends[place]]], fate) for place in group[sorted(picks)]]
    return chosen


def _history(rows: Table, fate: str) -> WeightHistory:
    last = rows[-1]
    return WeightHistory(str(last["layer"]), int(last["index"]), rows["step"], rows["t"], rows["present"], fate)
