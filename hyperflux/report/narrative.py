"""A run in plain sentences, each computed from what it recorded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hyperflux.report.formatting import accuracy, counted, listed, percent, points
from hyperflux.report.run import ReportedRun
from hyperflux.telemetry.columns import flux_column

STARVED = 0.25
"""A layer is starved where its density is below this share of the network's."""
LAST_PART = 0.1
"""Share of a run in which a change of mask comes too late for the network to train on it."""


@dataclass(frozen=True)
class Finding:
    """One finding: what it is about, and the sentences."""

    topic: str
    text: str


def narrative(run: ReportedRun) -> list[Finding]:
    """Everything that a run's files say about it, in the order in which a reader asks."""
    return _given(
        *size_and_accuracy(run),
        Finding("What was pruned first", _first_pruned(run)),
        Finding("Layers at the end", _final_layers(run)),
        Finding("Weights that came back", _regrown_weights(run)),
        Finding("The mask", _mask(run)),
        Finding("Pressure and flux", _pressure(run)),
        Finding("Warnings", _warnings(run)),
        Finding("Telemetry", _missing_telemetry(run)),
    )


def short_narrative(run: ReportedRun) -> list[Finding]:
    """What matters of one run among several."""
    return _given(
        *size_and_accuracy(run),
        Finding("Layers at the end", _final_layers(run)),
        Finding("The mask", _mask(run)),
        Finding("Warnings", _warnings(run)),
    )


def size_and_accuracy(run: ReportedRun) -> list[Finding]:
    """How many weights are left, and how accurate the network is."""
    return [Finding("Size", _size(run)), Finding("Accuracy", _accuracy(run))]


def _given(*findings: Finding) -> list[Finding]:
    """The findings that have a text."""
    return [finding for finding in findings if finding.text]


def _size(run: ReportedRun) -> str:
    left, total, asked = run.outcome.surviving_weights, run.outcome.total_weights, run.target_count
    outcome = f"{left:,} of {counted(total, 'weight')} are left, a density of {percent(run.density)}"
    if left == asked:
        return f"{outcome}: exactly the number asked for."
    side = "more" if left > asked else "fewer"
    share = f", {percent(abs(left - asked) / asked)} off" if asked else ""
    return f"{outcome}: {abs(left - asked):,} {side} than the {asked:,} asked for{share}."


def _accuracy(run: ReportedRun) -> str:
    final, dense = run.outcome.final_accuracy, run.outcome.dense_accuracy
    if dense is None:
        return (
            f"{accuracy(final)} on test data. The network was pruned from scratch, so there is no dense one beside it."
        )
    change = round(10_000 * (final - dense))
    if change == 0:
        return f"{accuracy(final)} on test data, as much as the dense network."
    side = "below" if change < 0 else "above"
    return (
        f"{accuracy(final)} on test data, {points(abs(final - dense)).removeprefix('+')} {side} the dense network's "
        f"{accuracy(dense)}."
    )


def _first_pruned(run: ReportedRun) -> str:
    """Which layers lost half of their weights first, and which kept it."""
    halved, kept = [], []
    for layer in run.outcome.layers:
        rows = run.layer_rows(layer.name)
        if rows is None:
            return ""
        below = np.flatnonzero(2 * rows["surviving"] <= rows["total"])
        if len(below):
            halved.append((int(rows["step"][below[0]]), layer.name))
        else:
            kept.append(layer.name)
    halved.sort(key=lambda pair: pair[0])
    if not halved:
        return "No layer was ever below half of its weights."
    texts = [f"{name} by step {step:,}{_share(run, step)}" for step, name in halved]
    if len(texts) == 1:
        others = "every other layer" if len(kept) > 1 else listed(kept) if kept else ""
        return f"{texts[0]} was down to half of its weights" + (f"; {others} kept more than half." if others else ".")
    if len(texts) <= 4:
        text = f"Down to half of their weights, in this order: {listed(texts)}."
    else:
        text = f"Down to half of their weights first: {listed(texts[:3])}. Last of {len(texts)} layers: {texts[-1]}."
    return text + (f" {listed(kept)} kept more than half." if kept else "")


def _share(run: ReportedRun, step: int) -> str:
    """How far into its stage a step is."""
    if step <= run.last_pruning_step:
        return f" ({_of(step, run.last_pruning_step)} of the pruning stage)"
    return f" ({_of(step - run.last_pruning_step, run.last_step - run.last_pruning_step)} of the regrowth stage)"


def _of(part: float, whole: float) -> str:
    """A share to the whole per cent."""
    return f"{100 * part / whole:.0f} %"


def _final_layers(run: ReportedRun) -> str:
    """Cut and starved layers; the sparsest and the densest."""
    layers = [(layer.surviving / layer.total, layer.name) for layer in run.outcome.layers]
    if len(layers) == 1:
        return ""
    cut = [name for share, name in layers if share == 0]
    starved = sorted((share, name) for share, name in layers if 0 < share < STARVED * run.density)
    sentences = []
    if cut:
        verb = "has" if len(cut) == 1 else "have"
        sentences.append(
            f"{listed(cut)} {verb} lost every weight: unless a shortcut leads around, nothing passes and the network "
            "is cut in two."
        )
    if starved:
        names = [f"{name} ({percent(share)})" for share, name in starved]
        verb = "is" if len(starved) == 1 else "are"
        sentences.append(
            f"{listed(names)} {verb} starved: below a quarter of the network's density of {percent(run.density)}."
        )
    if not cut and not starved:
        share, name = min(layers)
        sentences.append(f"No layer is starved: the sparsest, {name}, keeps {percent(share)} of its weights.")
    share, name = max(layers)
    sentences.append(f"The densest, {name}, keeps {percent(share)}.")
    return " ".join(sentences)


def _regrown_weights(run: ReportedRun) -> str:
    """How many pruned weights ever came back, and how many survivors are such."""
    if run.telemetry is None:
        return ""
    flips = run.telemetry["flips"]
    counts = np.bincount(flips["flips"], weights=flips["weights"]).astype(int)
    pruned, back = int(counts[1:].sum()), int(counts[2:].sum())
    survivors, returned = int(counts[::2].sum()), int(counts[2::2].sum())
    if not pruned:
        return "No weight was ever pruned."
    if not back:
        return f"None of the {counted(pruned, 'weight')} that were pruned ever came back."
    text = f"Of the {counted(pruned, 'weight')} that were ever pruned, {back:,} ({percent(back / pruned)}) came back"
    most = counted(len(counts) - 1, "time")
    text += f" at least once; the most restless weight changed sides {most}."
    if survivors:
        text += (
            f" Of the {survivors:,} present at the end, {returned:,} ({percent(returned / survivors)}) had been pruned "
            "before."
        )
    return text


def _mask(run: ReportedRun) -> str:
    """Whether the mask had settled before the run ended."""
    if run.telemetry is None:
        return ""
    ages, last = run.telemetry["ages"], run.last_step
    changes = ages["step"][(ages["step"] > 0) & (ages["present"] + ages["pruned"] > 0)]
    if not len(changes):
        return "The mask never changed."
    latest = int(changes.max())
    late = ages["step"] > (1 - LAST_PART) * last
    present, pruned = int(ages["present"][late].sum()), int(ages["pruned"][late].sum())
    if latest <= (1 - LAST_PART) * last:
        return (
            f"It had settled: its last change came by step {latest:,} of {last:,}, and the final network trained "
            f"for the remaining {_of(last - latest, last)} of the run."
        )
    survivors = int(ages["present"].sum())
    share = f" ({percent(present / survivors)} of them)" if survivors else ""
    return (
        f"It was still changing at the end: in the last tenth of the run {present:,} of the weights present now{share} "
        f"came back and {pruned:,} of the others were pruned."
    )


def _pressure(run: ReportedRun) -> str:
    """Where the pressure went, and how flux compared with it."""
    if run.outcome.method == "magnitude":
        return "Magnitude pruning takes the smallest weights; it has neither pressure nor flux."
    if run.telemetry is None:
        return ""
    rows = run.telemetry["network"]
    rows = rows[rows["stage"] == "pruning"]
    pushed = rows[rows["pressure"] > 0]
    if not len(pushed):
        return "There was no pressure."
    top = pushed[np.argmax(pushed["pressure"])]
    text = (
        f"Pressure γ lay between {pushed['pressure'].min():.3g} and {top['pressure']:.3g}, highest at step "
        f"{top['step']:,}{_share(run, int(top['step']))}, and ended the stage at {rows['pressure'][-1]:.3g}."
    )
    if len(pushed) < len(rows):
        text += f" It was 0 for {_of(len(rows) - len(pushed), len(rows))} of the stage."
    flux = pushed[flux_column("restored", 0.5)] / (pushed["pressure"] / pushed["total"])
    flux = flux[np.isfinite(flux)]
    if len(flux):
        text += f" Weights that had just come back had a restoring flux of typically {np.median(flux):.2g} times γ/N."
    return text


def _warnings(run: ReportedRun) -> str:
    """What the user was sentences of while the run was under way."""
    return " ".join(f"{line}." for line in run.outcome.warnings)


def _missing_telemetry(run: ReportedRun) -> str:
    """What there is no record of, and how to get it."""
    if run.telemetry is None:
        return (
            "This run kept none: there is no record of layers over time, flips, flux or single weights. Run it again "
            "with --telemetry light to see them."
        )
    return ""
