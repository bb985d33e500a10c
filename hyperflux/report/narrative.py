"""A run in plain sentences, each computed from what was recorded."""

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


@np.errstate(all="ignore")
def narrative(run: ReportedRun) -> list[Finding]:
    """Everything that a run's files say about it, in the order in which a reader asks."""
    return _given(
        *size_and_accuracy(run),
        Finding("What was pruned first", _first_pruned(run)),
        Finding("Layers at the end", _final_layers(run)),
        Finding(f"{run.noun.capitalize()}s that came back", _regrown(run)),
        Finding("The mask", _mask(run)),
        Finding("Pressure and flux", _pressure(run)),
        Finding("Warnings", _warnings(run)),
        Finding("Telemetry", _missing_telemetry(run)),
    )


@np.errstate(all="ignore")
def short_narrative(run: ReportedRun) -> list[Finding]:
    """What matters of one run among several."""
    return _given(
        *size_and_accuracy(run),
        Finding("Layers at the end", _final_layers(run)),
        Finding("The mask", _mask(run)),
        Finding("Warnings", _warnings(run)),
    )


def size_and_accuracy(run: ReportedRun) -> list[Finding]:
    """How much is left, and how accurate the network is."""
    size = _channel_size(run) if run.asked.of_channels else _size(run)
    return [Finding("Size", size), Finding("Accuracy", _accuracy(run))]


def _given(*findings: Finding) -> list[Finding]:
    """The findings that have a text."""
    return [finding for finding in findings if finding.text]


def _size(run: ReportedRun) -> str:
    left, total, target = run.outcome.surviving_weights, run.outcome.total_weights, run.target_count
    text = f"{left:,} of {counted(total, 'weight')} are left, a density of {percent(run.density)}"
    if left == target:
        return f"{text}: exactly the target."
    side = "more" if left > target else "fewer"
    share = f" ({percent(abs(left - target) / target)} off)" if target else ""
    return f"{text}: {abs(left - target):,} {side} than the target of {target:,}{share}."


def _channel_size(run: ReportedRun) -> str:
    """How many channels are left, and what the network of these costs."""
    asked, outcome = run.asked, run.outcome
    text = (
        f"{run.open_gates:,} of {counted(run.gates, 'channel')} are left, and {percent(run.reached)} of the dense "
        f"network's {asked.counted}; the budget was {percent(asked.density)}."
    )
    if outcome.compact_parameters is None or outcome.parameters_ratio is None or outcome.flops_ratio is None:
        return text
    return (
        f"{text} Compacted, the network has {counted(outcome.compact_parameters, 'parameter')}, "
        f"{percent(outcome.parameters_ratio)} of the dense one's, and takes {percent(outcome.flops_ratio)} of the "
        "FLOPs."
    )


def _accuracy(run: ReportedRun) -> str:
    final, dense = run.outcome.final_accuracy, run.outcome.dense_accuracy
    if dense is None:
        return (
            f"{accuracy(final)} on test data. The network was pruned from scratch, so there is no dense accuracy to "
            "compare with."
        )
    change = round(10_000 * (final - dense))
    if change == 0:
        return f"{accuracy(final)} on test data, the same as the dense network."
    side = "below" if change < 0 else "above"
    return (
        f"{accuracy(final)} on test data, {points(abs(final - dense)).removeprefix('+')} {side} the dense network's "
        f"{accuracy(dense)}."
    )


def _first_pruned(run: ReportedRun) -> str:
    """Which layers lost half of their gates first, and which kept more."""
    halved, kept, nouns = [], [], f"{run.noun}s"
    for layer in run.gated:
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
        return f"No layer lost half of its {nouns}."
    if len(halved) == 1:
        step, name = halved[0]
        others = "every other layer" if len(kept) > 1 else listed(kept) if kept else ""
        text = f"{name} lost half of its {nouns} by step {step:,}{_progress(run, step)}"
        return text + (f"; {others} kept more than half." if others else ".")
    texts = [f"{name} by step {step:,}{_progress(run, step)}" for step, name in halved]
    if len(texts) <= 4:
        text = f"Layers lost half of their {nouns} in this order: {listed(texts)}."
    else:
        text = f"The first to lose half of their {nouns}: {listed(texts[:3])}. The last of {len(texts)}: {texts[-1]}."
    return text + (f" {listed(kept)} kept more than half." if kept else "")


def _progress(run: ReportedRun, step: int) -> str:
    """How far into its stage a step is, in parentheses."""
    end = run.last_pruning_step
    name, passed, length = ("pruning", step, end) if step <= end else ("regrowth", step - end, run.last_step - end)
    return f" ({_share(passed, length)} into the {name} stage)" if length > 0 else ""


def _share(part: float, whole: float) -> str:
    """A share in whole percent."""
    return f"{100 * part / whole:.0f} %"


def _final_layers(run: ReportedRun) -> str:
    """Cut and starved layers; the sparsest and the densest."""
    layers = [(layer.surviving / layer.total, layer.name) for layer in run.gated]
    share_left = run.open_gates / run.gates
    if len(layers) == 1:
        return ""
    cut = [name for share, name in layers if share == 0]
    starved = sorted((share, name) for share, name in layers if 0 < share < STARVED * share_left)
    sentences = []
    if cut:
        verb = "has" if len(cut) == 1 else "have"
        sentences.append(
            f"{listed(cut)} {verb} no {run.noun}s left: unless a shortcut leads around, nothing passes through and the "
            "network is cut in two."
        )
    if starved:
        names = [f"{name} ({percent(share)})" for share, name in starved]
        verb = "is" if len(starved) == 1 else "are"
        whole = f"share of {percent(share_left)}" if run.asked.of_channels else f"density of {percent(share_left)}"
        sentences.append(f"{listed(names)} {verb} starved: below a quarter of the network's {whole}.")
    if not cut and not starved:
        share, name = min(layers)
        sentences.append(f"No layer is starved: the sparsest, {name}, keeps {percent(share)} of its {run.noun}s.")
    share, name = max(layers)
    sentences.append(f"The densest, {name}, keeps {percent(share)}.")
    return " ".join(sentences)


def _regrown(run: ReportedRun) -> str:
    """How many pruned weights or channels came back, and how many of the survivors did."""
    if run.telemetry is None:
        return ""
    flips = run.telemetry["flips"]
    counts = np.bincount(flips["flips"], weights=flips["weights"]).astype(int)
    pruned, back = int(counts[1:].sum()), int(counts[2:].sum())
    survivors, returned = int(counts[::2].sum()), int(counts[2::2].sum())
    if not pruned:
        return f"No {run.noun} was ever {run.gone}."
    if not back:
        return f"None of the {counted(pruned, f'{run.gone} {run.noun}')} came back."
    text = (
        f"Of the {counted(pruned, run.noun)} ever {run.gone}, {back:,} ({percent(back / pruned)}) came back at least "
        f"once. The most active {run.noun} flipped {counted(len(counts) - 1, 'time')}."
    )
    if survivors:
        text += (
            f" Of the {counted(survivors, run.noun)} {run.left} at the end, {returned:,} "
            f"({percent(returned / survivors)}) had been {run.gone} before."
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
            f"The mask settled: its last change came by step {latest:,} of {last:,}, and the final network trained "
            f"for the remaining {_share(last - latest, last)} of the run."
        )
    survivors = int(ages["present"].sum())
    share = f" ({percent(present / survivors)} of those {run.left})" if survivors else ""
    return (
        f"The mask was still changing at the end: in the last tenth of the run, {counted(present, run.noun)} came back "
        f"to stay{share} and {pruned:,} {'was' if pruned == 1 else 'were'} {run.gone} for good."
    )


def _pressure(run: ReportedRun) -> str:
    """The range of the pressure, and how flux compared with it."""
    if run.outcome.method == "magnitude":
        return f"Magnitude pruning removes the smallest {run.noun}s; it has neither pressure nor flux."
    if run.outcome.method == "taylor":
        return "Taylor pruning removes the channels that the loss depends on least; it has neither pressure nor flux."
    if run.telemetry is None:
        return ""
    rows = run.telemetry["network"]
    rows = rows[rows["stage"] == "pruning"]
    pushed = rows[rows["pressure"] > 0]
    if not len(pushed):
        return "The pressure was always 0."
    top = pushed[np.argmax(pushed["pressure"])]
    text = (
        f"Pressure γ ranged from {pushed['pressure'].min():.3g} to {top['pressure']:.3g}. It peaked at step "
        f"{top['step']:,}{_progress(run, int(top['step']))} and ended the stage at {rows['pressure'][-1]:.3g}."
    )
    if len(pushed) < len(rows):
        text += f" It was 0 for {_share(len(rows) - len(pushed), len(rows))} of the stage."
    flux = pushed[flux_column("restored", 0.5)] / (pushed["pressure"] / pushed["total"])
    flux = flux[np.isfinite(flux)]
    if len(flux):
        each = "γ/J, the mean pressure on a channel" if run.asked.of_channels else "γ/N"
        text += (
            f" The restoring flux of {run.noun}s that had just come back was typically {np.median(flux):.2g} times "
            f"{each}."
        )
    return text


def _warnings(run: ReportedRun) -> str:
    """The warnings given during the run."""
    return " ".join(f"{line}." for line in run.outcome.warnings)


def _missing_telemetry(run: ReportedRun) -> str:
    """What was not recorded, and how to record it."""
    if run.telemetry is None:
        return (
            f"Nothing was recorded about layers over time, flips, flux and single {run.noun}s. Run it again with "
            "--telemetry light to see them."
        )
    return ""
